"""Which metrics of metrics.jsonl a report shows, and in what words."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric of metrics.jsonl is shown.

    unit: values are divided by it.
    reference: the number of eval.json that is the same on test problems, for methods without a curve; "" for none.
    from_zero: the vertical axis starts there. share: in percent.
    counted: it grows with the number of samples, so it compares only among equally many.
    """

    name: str
    title: str
    subtitle: str
    caption: str
    share: bool = False
    from_zero: bool = True
    reference: str = ""
    counted: bool = False
    unit: float = 1.0


VARIETY = (
    Metric(
        "eval/distinct_correct",
        *("Distinct correct answers", "a problem, validation split"),
        "Clusters among the correct samples of a validation problem.",
        reference="distinct_correct",
        counted=True,
    ),
    Metric(
        "clusters/distinct_correct",
        *("Distinct correct, training", "a prompt, among its generations"),
        "Clusters among the correct generations of a training prompt, degenerate ones left out.",
        counted=True,
    ),
    Metric(
        "clusters/distinct",
        *("Clusters, training", "a prompt, among its generations"),
        "Clusters among all generations of a training prompt, correct or not, degenerate ones left out.",
        counted=True,
    ),
    Metric(
        "eval/coverage",
        *("Coverage", "validation problems with a correct sample"),
        "The share of validation problems with at least one correct sample.",
        share=True,
        reference="coverage",
        counted=True,
    ),
    Metric(
        "coverage",
        *("Coverage, training", "prompts with a correct generation"),
        "The share of a step's prompts with at least one correct generation.",
        share=True,
        counted=True,
    ),
    Metric(
        "eval/pass_at_1",
        *("pass@1", "validation problems"),
        "The share of correct samples, averaged over validation problems.",
        share=True,
        reference="pass_at_k/1",
    ),
)
LEARNING = (
    Metric("rewards/mean", "Reward", "mean over a step's generations", "The verifier's reward.", from_zero=False),
    Metric(
        "advantages/nonzero_frac",
        *("Groups with signal", "share of prompts"),
        "The share of prompts whose advantages are not all 0: the others teach nothing.",
        share=True,
    ),
    Metric("completions/mean_length", "Length", "tokens a generation", "The end token included."),
    Metric(
        "completions/truncated_frac",
        *("Truncated", "share of generations"),
        "The share of generations that the length limit cut.",
        share=True,
    ),
    Metric(
        "completions/entropy",
        *("Entropy", "nats a token"),
        "The mean of -log p of the sampled tokens, an unbiased estimate of the entropy of the sampled distribution.",
    ),
    Metric(
        "kl/start",
        *("Distance from the start", "nats a token"),
        "An estimate of KL(policy || initial policy), over sampled tokens.",
    ),
    Metric("loss/grad_norm", "Gradient norm", "before clipping", "The Euclidean norm over all parameters."),
    Metric(
        "loss/ratio_mean",
        *("Probability ratio, mean", "over tokens and updates"),
        "The ratio that the loss clips; 1 where the policy is still the one that the loss compares with.",
    ),
    Metric(
        "loss/ratio_max",
        *("Probability ratio, largest", "over tokens and updates"),
        "The largest ratio of a step, before clipping.",
    ),
    Metric(
        "loss/clip_frac",
        *("Clipped", "share of tokens"),
        "The share of tokens whose probability ratio is beyond the clipping bounds.",
        share=True,
    ),
    Metric(
        "policy/effective_sample_size",
        *("Effective sample size", "share of tokens"),
        "Where rollouts are sampled ahead: of how many tokens of equal weight their importance weights are worth.",
        share=True,
    ),
    Metric(
        "logprobs/sampler_gap",
        *("Sampler gap", "nats a token"),
        "How far the trainer's log-probabilities of sampled tokens are from the sampler's.",
    ),
    Metric("optimizer/learning_rate", "Learning rate", "mean over a step's updates", "0 in steps without an update."),
    Metric("loss/supervised", "Supervised loss", "nats a token", "Of the warm start."),
)
GRADING = (
    Metric(
        "judge/failure_frac",
        *("Judge failures", "share of calls"),
        "Judge calls that failed for good; their groups contribute no gradient, if judge.on_failure is drop.",
        share=True,
    ),
    Metric(
        "verifier/failure_frac",
        *("Verifier failures", "share of generations"),
        "Generations that we could not verify; they contribute no gradient.",
        share=True,
    ),
    Metric(
        "clusters/degenerate_frac",
        *("Degenerate", "share of generations"),
        "Generations in which no strategy is discernible; they never count as a cluster.",
        share=True,
    ),
    Metric("judge/latency_s", "Judge latency", "seconds a call, mean", "How long a call took, retries included."),
    Metric(
        "judge/exposed_s",
        *("Waiting for the judge", "seconds a step"),
        "How long a step waited for grades when it needed them.",
    ),
)
TIME = (
    Metric("time/step_s", "Step time", "seconds", "Saving and evaluating left out."),
    Metric(
        "throughput/rollout_tokens_per_s",
        *("Sampling throughput", "tokens a second"),
        "Sampled tokens by the time of the rollout.",
    ),
    Metric(
        "throughput/train_tokens_per_s",
        *("Training throughput", "tokens a second"),
        "Real tokens of prompts and completions that all updates went through, by the time of the update.",
    ),
    Metric(
        "memory/host_peak_bytes",
        *("Memory of the host", "GiB, peak"),
        "The most that the first process has held since it began.",
        unit=2.0**30,
    ),
    Metric(
        "memory/device_peak_bytes",
        *("Memory of a device", "GiB, peak"),
        "The most that the first device has held since the process began.",
        unit=2.0**30,
    ),
)
