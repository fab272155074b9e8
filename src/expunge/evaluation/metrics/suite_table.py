"""The part of the table of metrics that is of a suite as a whole: one number a model."""

from collections.abc import Iterator

from expunge.evaluation.metrics.metric import AS_RETRAINED, HIGHER, LOWER, NEITHER, Metric

SUITE_LEVEL = (
    Metric(
        "model_utility",
        "model utility",
        "harmonic mean of probability, ROUGE-L and truth ratio of the sets to keep",
        "The harmonic mean of probability, ROUGE-L and truth ratio, where defined, over the sets that must be kept: "
        "one number for how useful the model still is; it is near 0 as soon as one part is.",
        HIGHER,
        source="TOFU (arXiv 2401.06121)",
        needs="a set to keep; generation",
        on_sets=False,
    ),
    Metric(
        "forget_quality",
        "forget quality",
        "two-sided two-sample KS test of R, unlearned against retrained",
        "The p-value of a Kolmogorov–Smirnov test that compares the truth ratios of the unlearned and the retrained "
        "model on the forget set: near 1, they cannot be told apart; below 0.05, they can.",
        HIGHER,
        source="TOFU (arXiv 2401.06121)",
        needs="wrong answers; the retrained model",
        on_sets=False,
    ),
    Metric(
        "forget_quality_log10",
        "forget quality (log10)",
        "log10 p",
        "The base-10 logarithm of forget quality, 0 at best.",
        HIGHER,
        source="TOFU (arXiv 2401.06121)",
        needs="wrong answers; the retrained model",
        on_sets=False,
    ),
    Metric(
        "privleak",
        "PrivLeak",
        "100 · (A − A_retrained) / A_retrained, A = 1 − AUC of min-k (40 %)",
        "By how many per cent the min-k membership test differs from the retrained model's, 0 at best: far below 0 the "
        "forgotten examples still look trained on, far above 0 they are suspiciously unlikely, which betrays them too.",
        AS_RETRAINED,
        source="MUSE (arXiv 2407.06460)",
        needs="a holdout set; the retrained model",
        on_sets=False,
    ),
    Metric(
        "uds",
        "unlearning depth score",
        "mean_i Σ_l Δ¹_il clip(Δ²_il / Δ¹_il, 0, 1) / Σ_l Δ¹_il, layers with Δ¹ > .05",
        "How deep the forgetting goes. Layer by layer, the original model's inner states are replaced by the retrained "
        "model's (Δ¹, what the answer loses in log-probability) and by the unlearned model's (Δ²): 0 if the knowledge "
        "is all still there inside, as in the original, 1 if it is gone as in the retrained model.",
        HIGHER,
        source="Lee et al. 2026 (arXiv 2605.24614)",
        needs="--deep; the original and the retrained model",
        on_sets=False,
    ),
    Metric(
        "lens_depth",
        "logit-lens depth",
        "as uds, Δ from reading each layer out through the original's last norm and output layer",
        "As the unlearning depth score, but each layer's states are read out through the original's output layer instead "
        "of put in their place: 0 as readable as in the original, 1 as little as in the retrained model.",
        HIGHER,
        source="Lee et al. 2026 (arXiv 2605.24614), the logit-lens baseline",
        needs="--deep; the original and the retrained model",
        on_sets=False,
    ),
    *(
        Metric(
            f"leak_at_{k}",
            f"leak@{k}",
            f"1 − C(n − c, {k}) / C(n, {k})",
            f"How likely at least one of {k} sampled answer{'s gives' if k > 1 else ' gives'} the forgotten answer away, "
            "from n samples of which c do.",
            LOWER,
            source="as pass@k, Chen et al. 2021 (arXiv 2107.03374)",
            needs="the sampling attack",
            on_sets=False,
        )
        for k in (1, 16, 128)
    ),
    Metric(
        "leak_bound",
        "leak@1, upper bound",
        "95 % quantile of Beta(c + 1, n − c) of all c leaks in n samples",
        "How large leak@1 of these questions could be at most, at 95 % confidence: 1 % where none of 300 samples gives an "
        "answer away.",
        LOWER,
        source="Clopper and Pearson 1934",
        needs="the sampling attack",
        on_sets=False,
    ),
    Metric(
        "codes_changed",
        "codes changed by the edit",
        "#{w ≠ w_original, code ≠ code_original} / #{w ≠ w_original}",
        "Of the weights unlearning changed, the share that still differs from the original once both are rounded to the "
        "format: what is left of the edit on a smaller machine.",
        NEITHER,
        source="ours, after arXiv 2410.16454",
        needs="the quantization attack; the original model",
        on_sets=False,
    ),
)


SCORES = {  # attack: (label, score in words, formula, source, needs)
    "loss": ("loss", "the loss on an example", "l", "Yeom et al. 2018 (arXiv 1709.01604)", ""),
    "zlib": (
        "zlib",
        "the loss on an example divided by its compressed length",
        "l / bytes of zlib(answer)",
        "Carlini et al. 2021 (arXiv 2012.07805)",
        "",
    ),
    "min_k": (
        "min-k",
        "the mean log-probability of an example's least likely tokens",
        "−mean of the 40 % lowest log p",
        "Shi et al. 2024 (arXiv 2310.16789)",
        "",
    ),
    "min_k_20": (
        "min-k (20 %)",
        "the mean log-probability of the least likely fifth of an example's tokens",
        "−mean of the 20 % lowest log p",
        "Shi et al. 2024 (arXiv 2310.16789)",
        "",
    ),
    "min_k_plus_plus": (
        "min-k++",
        "the log-probabilities of an example's least likely tokens, standardised per token",
        "−mean of the 40 % lowest (log p − μ)/σ",
        "Zhang et al. 2025 (arXiv 2404.02936)",
        "",
    ),
    "reference": (
        "reference",
        "the loss on an example less the retrained model's",
        "l − l_retrained",
        "Carlini et al. 2021 (arXiv 2012.07805)",
        "; the retrained model",
    ),
    "gradnorm": (
        "gradient-norm",
        "the norm of an example's gradient",
        "‖∇l‖₂",
        "Wang et al. 2024 (arXiv 2402.17012)",
        "; --deep",
    ),
}


def membership() -> Iterator[Metric]:
    for name, (label, score, formula, source, needs) in SCORES.items():
        yield Metric(
            f"mia.{name}.auc",
            f"{label} AUC",
            f"P(s_forget < s_holdout) + ½ P(=), s = {formula}",
            f"How well {score} tells forgotten examples from ones never seen: the area under the ROC curve; 0.5 means "
            "not at all, and a value far from the retrained model's, on either side, betrays the forgotten data.",
            AS_RETRAINED,
            source=source,
            needs=f"a holdout set{needs}",
            on_sets=False,
        )
        yield Metric(
            f"mia.{name}.tpr_at_1_fpr",
            f"{label} true positives at 1 % false ones",
            f"P(s_forget < c), c such that P(s_holdout < c) ≤ 1 %, s = {formula}",
            f"The share of forgotten examples that {score} gives away when 1 % of never-seen ones may be accused "
            "wrongly.",
            LOWER,
            source="Carlini et al. 2022 (arXiv 2112.03570)",
            needs=f"a holdout set{needs}",
            on_sets=False,
        )
