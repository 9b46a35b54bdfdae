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
    max_ratio: NonNegativeFloat = 1000.0
    """Largest probability ratio of a step's tokens, or of its episodes where `algorithm.ratio` is `sequence`."""
    max_clip_fraction: Share = 0.95
    """Share of tokens whose ratio is clipped."""
    max_policy_tokens: NonNegativeFloat = 0.0
    """Tokens that the policy writes in an episode; what is long depends on the task."""
    max_groups_without_spread: Share = 0.0
    """Share of groups that teach nothing; of account where episodes are compared within groups."""
    min_reward: Share = 0.2
    """Mean reward of the last `reward_steps` steps as a share of the best mean of as many, once that was above 0."""
    min_searches: Share = 0.1
    """Searches per episode in the last `reward_steps` steps as a share of the most in as many, once there were any."""
    reward_steps: Positive = 10
    """Steps over which rewards and searches are averaged for `min_reward` and `min_searches`."""
