"""What tests put into each of verl's processes (by VERL_USE_EXTERNAL_MODULES): two-layer models that act by chance."""

import tiny

tiny.act_by_chance()
