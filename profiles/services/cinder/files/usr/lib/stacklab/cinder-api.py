"""Cinder's API with its policies loaded before the first request.

Cinder makes their enforcer on first use, without a lock, and its rules come into it after that: the second of
two first requests that come at once may be refused, as in Nova.
"""

from cinder import policy
from cinder.wsgi.wsgi import initialize_application

application = initialize_application()
policy.init()
