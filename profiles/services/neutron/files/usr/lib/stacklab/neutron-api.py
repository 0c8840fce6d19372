"""Neutron's API with its policies loaded before the first request.

Neutron makes their enforcer on first use, without a lock: of the first requests that come at once, one meets
half of the rules, and is told that there is no network where there is one.
"""

from neutron import policy
from neutron.cmd.server import main_api_uwsgi

application = main_api_uwsgi()
policy.init()
