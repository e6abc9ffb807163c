SELECT enqueue(:queue, :payload);
