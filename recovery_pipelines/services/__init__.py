"""Service stacks for drills: what runs, who supervises it, who writes to it, how it loses power."""
