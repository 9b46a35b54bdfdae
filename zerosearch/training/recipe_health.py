"""The recipe's table of health."""

from zerosearch.training.recipe_section import NonNegativeFloat, Positive, Section, Share


class Health(Section):
    """Figures beyond which a run has collapsed and stops, its last good checkpoint kept; 0 = not watched."""

    patience: Positive = 10
    """Steps in a row that a figure must be beyond its limit; one that is no finite number stops the run at once."""
    max_kl: NonNegativeFloat = 10.0
    """Divergence from the reference."""
    min_entropy: NonNegativeFloat = 0.0
    """Entropy of the policy's next token in nats; what is low depends on model and temperature."""
    max_gradient_norm: NonNegativeFloat = 1000.0
    """Length of the gradient before it is cut."""
    max_invalid_actions: Share = 0.95
    """Share of turns without a valid action."""
    max_truncated_turns: Share = 0.95
    """Share of turns that ran out of tokens."""
    max_empty_pages: Share = 0.9
    """Share of searches that found nothing, or for which the simulator wrote no document."""
    max_repetition: Share = 0.9
    """Share of the groups of four tokens that the policy wrote before in the same episode."""
    min_reward: Share = 0.2
    """Mean reward of the last `reward_steps` steps as a share of the best mean of as many."""
    reward_steps: Positive = 10
    """Steps over which rewards are averaged for `min_reward`."""
