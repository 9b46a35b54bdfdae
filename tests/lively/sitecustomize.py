"""For processes whose PYTHONPATH names this folder and that of the tests: their random policies act by chance."""

import tiny

tiny.act_by_chance()
