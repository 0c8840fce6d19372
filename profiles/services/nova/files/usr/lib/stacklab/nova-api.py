"""Nova's API with its policies loaded before the first request.

Nova makes their enforcer on first use, without a lock, and its rules come into it after that: the second of
two first requests that come at once may be refused, as in Neutron.
"""

from nova import policy
from nova.api.openstack.compute.wsgi import init_application

application = init_application()
policy.init()
