"""Whether a cloud does what it is there for: asked of the cloud itself, never of stacklab's own records."""

from stacklab.check.health import is_healthy, look, look_after_start
from stacklab.check.result import CheckResult, CheckState
from stacklab.check.runner import check_layer, verify

__all__ = ["CheckResult", "CheckState", "check_layer", "is_healthy", "look", "look_after_start", "verify"]
