"""How the log speaks of a run: every line names the run, its task and its image."""

import structlog

from node_agent.domain.run import Run


def log_of(run: Run) -> "structlog.stdlib.BoundLogger":
    """Give a logger that says in every line which run it is about."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger().bind(
        run_id=run.id, task_id=run.task.id, image=run.task.image
    )
    return bound
