"""Hypothesis: the same examples in every run, few enough for CI; `make fuzz` looks further."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "kernels",
    max_examples=25,
    deadline=None,  # a shared machine may take its time
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("kernels")
