"""Registers the kinds of task of this subpackage, under the names that recipes give in `task`."""

from googlenet_jax.detection import multibox, rcnn
from googlenet_jax.training.task import register_task

register_task(multibox.NAME, multibox.MULTIBOX)
register_task(rcnn.NAME, rcnn.RCNN)
