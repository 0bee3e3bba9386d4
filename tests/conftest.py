"""What holds for all suites."""

from hypothesis import settings

# how long one example takes says how busy the machine is
settings.register_profile("nfctl", deadline=None)
settings.load_profile("nfctl")
