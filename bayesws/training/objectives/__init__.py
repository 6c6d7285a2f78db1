"""What a network is trained by: the evidence, or a task loss with what is chosen on held-out data."""

from bayesws.training.objectives.rivals import OBJECTIVES, Constrained, Fixed, Task, Validated

__all__ = ["OBJECTIVES", "Constrained", "Fixed", "Task", "Validated"]
