SELECT enqueue_many(:queue, :payloads);
