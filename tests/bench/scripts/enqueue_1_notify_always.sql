SELECT enqueue(:queue, :payload), pg_notify('pgq_always', :queue);
