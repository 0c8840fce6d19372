"""Keystone's API with its policies loaded before the first request.

Keystone makes their enforcer on first use, without a lock: of the first requests that come at once, one meets
half of the rules and is told 403 (seen in every second start of a service with several threads).
"""

from keystone.common.rbac_enforcer.enforcer import RBACEnforcer
from keystone.server.wsgi import initialize_public_application

application = initialize_public_application()
RBACEnforcer()._enforcer.load_rules()
