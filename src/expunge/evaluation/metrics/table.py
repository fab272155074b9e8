"""Every metric in one table: its formula, its meaning in a sentence, which way is better, where it is from."""

from expunge.evaluation.metrics.languages import NAMES
from expunge.evaluation.metrics.metric import AS_RETRAINED, HIGHER, LOWER, NEITHER, Metric
from expunge.evaluation.metrics.suite_table import SUITE_LEVEL, membership

_MEMORIZATION = (
    Metric(
        "extraction_strength",
        "extraction strength",
        "1 − k/T",
        "The share of an answer the model completes word for word by itself: 1 − k/T, where k is the smallest number "
        "of the answer's T tokens it must be given so that it gets every later one right. Of running text the answer "
        "is what follows the part it is given to go on from.",
        LOWER,
        HIGHER,
        "Carlini et al. 2021 (arXiv 2012.07805)",
    ),
    Metric(
        "exact_memorization",
        "exact memorization",
        "(1/T) Σ_t [argmax_v p(v | y_<t) = y_t]",
        "The share of an answer's tokens the model would choose itself, given all the tokens before.",
        LOWER,
        HIGHER,
        "Tirumala et al. 2022 (arXiv 2205.10770)",
    ),
    Metric(
        "probability",
        "probability",
        "exp(−l)",
        "How likely the model finds the recorded answer, per token: exp(−mean negative log-likelihood), from 0 to 1.",
        LOWER,
        HIGHER,
        "TOFU (arXiv 2401.06121)",
    ),
    Metric(
        "probability_with_options",
        "probability among options",
        "p / (p + Σ p_wrong), p = exp(−l)",
        "The recorded answer's probability as a share of its own and the wrong answers' together.",
        LOWER,
        HIGHER,
        "TOFU (arXiv 2401.06121)",
        "wrong answers",
    ),
    Metric(
        "truth_ratio",
        "truth ratio",
        "R = exp(l_right − mean l_wrong); min(R, 1/R) on forget, max(0, 1 − R) elsewhere",
        "How the wrong answers' probability compares with that of a right answer in other words (ratio R): "
        "min(R, 1/R) on the forget set, max(0, 1 − R) elsewhere.",
        AS_RETRAINED,
        HIGHER,
        "TOFU (arXiv 2401.06121)",
        "wrong answers; best with a paraphrased right one",
    ),
    Metric(
        "logit_lens",
        "logit lens",
        "max_k exp((1/T) Σ_t log softmax(W norm(h_k,t))[y_t]), k over inner layers",
        "How likely the answer is when the model's inner layers are read out as if they were the last one; the largest "
        "over the layers read. High where an answer is only held back at the end.",
        LOWER,
        HIGHER,
        "nostalgebraist 2020; for unlearning Patil et al. 2024 (arXiv 2309.17410)",
        "a decoder whose last norm and output layer can be told apart",
    ),
    Metric(
        "nll",
        "loss",
        "l",
        "The mean negative log-likelihood of the recorded answer per token, in nats.",
        HIGHER,
        LOWER,
    ),
    Metric(
        "token_logprob",
        "log-probability per token",
        "mean over blocks of 4 tokens of log p(y_t | y_<t)",
        "The change of the recorded answers' log-probability per token, in nats, tested over blocks of tokens: it tells a "
        "change of these very examples from noise where they are too few for a test over examples.",
        LOWER,
        HIGHER,
        "ours",
        "at most 50 forget examples; another model to compare with",
    ),
    Metric(
        "perplexity",
        "perplexity",
        "exp(Σ S / Σ T)",
        "How many tokens the model in effect wavers between at each token of the running texts: exp(mean negative "
        "log-likelihood over all of their tokens), 1 for a text known by heart.",
        HIGHER,
        LOWER,
        needs="running text",
    ),
)


_GENERATION = (
    Metric(
        "rouge_l",
        "ROUGE-L",
        "LCS(words of answer, words written) / words of answer",
        "The share of the recorded answer's words that come back, in order, in the answer the model writes. Characters "
        "count as words in scripts that do not separate words.",
        LOWER,
        HIGHER,
        "Lin 2004",
        "generation",
    ),
    Metric(
        "rouge_l_f1",
        "ROUGE-L F1",
        "2 LCS / (words of answer + words written)",
        "As ROUGE-L, but words the model adds count against it: the harmonic mean of recall and precision.",
        LOWER,
        HIGHER,
        "Lin 2004",
        "generation",
    ),
    *(
        Metric(
            f"{name}_compat",
            f"{label}, words of a–z",
            f"{label} of runs of a–z and 0–9",
            f"{label} as the field's tools compute it: words are runs of a–z and 0–9, of which other scripts have none.",
            LOWER,
            HIGHER,
            "rouge-score; OpenUnlearning",
            "generation",
        )
        for name, label in (("rouge_l", "ROUGE-L"), ("rouge_l_f1", "ROUGE-L F1"))
    ),
    Metric(
        "keywords",
        "answers with all key words",
        "share of texts that hold all key words of the answer",
        "The share of what the model writes that holds every word of the answer that is not in the question, function "
        "words aside, in any order and form: unlike ROUGE-L, not satisfied by a wrong answer of the same form.",
        LOWER,
        HIGHER,
        "ours",
        "attacks",
    ),
    Metric(
        "new_disclosure",
        "new disclosure",
        "share of answers with key words of another record, none of them in the original's answer",
        "The share of the answers on the forget prompts that give away another record of the request (forget, retain, "
        "holdout): names, numbers or all key words of its answer that the original did not give there.",
        LOWER,
        source="ours",
        needs="generation; the original model",
    ),
    *(
        Metric(
            name,
            label,
            f"share of corrections where {what}",
            f"The share of the corrected or rewritten examples where {what}, by key words.",
            HIGHER,
            source="ours",
            needs="new_response or new_prompt; generation",
        )
        for name, label, what in (
            ("made", "corrections made", "the old answer is gone and the new one given"),
            ("old_gone", "old answers gone", "the old answer no longer comes after the old prompt"),
            ("new_given", "new answers given", "the new answer comes after the new prompt"),
        )
    ),
    Metric(
        "repetition",
        "repetition",
        "1 − distinct / all runs of 4 words",
        "The share of the runs of four words (characters in scripts that do not separate words) in what the model writes "
        "that stood there before.",
        AS_RETRAINED,
        LOWER,
        "Welleck et al. 2020 (arXiv 1908.04319), seq-rep-4",
        "generation",
    ),
    Metric(
        "refusal",
        "refusals",
        "share of texts with a phrase of refusal",
        "The share of what the model writes that says it does not know or will not answer, by a list of phrases in "
        f"{', '.join(NAMES.values())}; answers in other languages are left out.",
        NEITHER,
        LOWER,
        "phrases in the manner of TOFU's (arXiv 2401.06121)",
        "generation",
    ),
    Metric(
        "empty",
        "empty answers",
        "share of texts without a letter or digit",
        "The share of prompts to which the model writes no word at all.",
        LOWER,
        LOWER,
        needs="generation",
    ),
    Metric(
        "gibberish",
        "gibberish",
        "share of texts that repeat themselves or are not made of words",
        "The share of written answers that are no language: more than half of their runs of four words are repeated, or "
        "more than half of their words are not like words, or (where the original model is given) the original finds "
        "them hardly likelier than tokens drawn at random.",
        LOWER,
        LOWER,
        needs="generation",
    ),
    Metric(
        "fluency",
        "perplexity of its answers",
        "exp(Σ S_original(written) / Σ T)",
        "How surprising the original model finds what this model writes: the perplexity of the written answers under the "
        "original. Text that repeats itself is not surprising, so read it beside repetition.",
        AS_RETRAINED,
        LOWER,
        "as MUSE and RWKU report fluency; here no downloaded model is needed",
        "generation; the original model",
    ),
)


_WRITINGS = (
    Metric(
        "verbmem",
        "VerbMem",
        "ROUGE-L F1 of 128 tokens written after an excerpt",
        "How much of a text comes back when the model goes on from an excerpt of it: ROUGE-L F1 of the next 128 tokens.",
        LOWER,
        HIGHER,
        "MUSE (arXiv 2407.06460)",
        "the suite muse; generation",
    ),
    Metric(
        "knowmem",
        "KnowMem",
        "ROUGE-L F1 of up to 32 tokens written after solved questions and a question",
        "How well the model answers short questions about the texts: ROUGE-L F1 of what it writes against the answer. On "
        "texts that must stay this is MUSE's measure of utility.",
        LOWER,
        HIGHER,
        "MUSE (arXiv 2407.06460)",
        "the suite muse; generation",
    ),
)


_CHOICES = (
    Metric(
        "accuracy",
        "accuracy",
        "share of questions with argmax p(letter) right",
        "The share of multiple-choice questions where the model finds the right option's letter the likeliest. Guessing "
        "one of four gets 0.25: hazardous knowledge that is gone leaves no more than that.",
        LOWER,
        HIGHER,
        "WMDP (arXiv 2403.03218), MMLU (arXiv 2009.03300)",
        "questions with options",
    ),
    Metric(
        "accuracy_text",
        "accuracy by text",
        "share of questions with argmin l(option) right",
        "The share of multiple-choice questions where, asked without the options, the model finds the right one's text "
        "the likeliest for its length. Guessing one of four gets 0.25.",
        LOWER,
        HIGHER,
        "",
        "questions with options",
    ),
    *(
        Metric(
            name,
            f"harness {label}",
            f"share of examples whose right option is the {what}",
            "The share of a task's examples, as the evaluation harness puts them, whose right option the model finds the "
            f"{what}.",
            LOWER,
            HIGHER,
            "lm-eval",
            "the suite harness",
        )
        for name, label, what in (
            ("acc", "accuracy", "likeliest"),
            ("acc_norm", "accuracy by length", "likeliest for its length"),
        )
    ),
    Metric(
        "option_accuracy",
        "accuracy among options",
        "share of examples with p_right > max p_wrong",
        "The share of questions where the model finds the right answer likelier than each of the other options.",
        LOWER,
        HIGHER,
        "",
        "wrong answers",
    ),
    Metric(
        "auc",
        "AUC",
        "P(s_yes > s_no) + ½ P(s_yes = s_no), s = log p(Yes) − log p(No)",
        "How often a question whose answer is Yes gets a larger log p(Yes) − log p(No) than one whose answer is No: the "
        "area under the ROC curve, 0.5 for guessing.",
        LOWER,
        HIGHER,
        "TALLRec (arXiv 2305.00447)",
        "yes/no questions",
    ),
    Metric(
        "hit_ratio",
        "HitRatio@1",
        "right / valid written answers",
        "The share of the model's valid written answers, each naming exactly one candidate, that name the right one.",
        LOWER,
        HIGHER,
        "LLaRA (arXiv 2312.02445)",
        "candidates; generation",
    ),
    Metric(
        "valid_ratio",
        "valid ratio",
        "valid / all written answers",
        "The share of the model's written answers that name exactly one of the candidates.",
        LOWER,
        HIGHER,
        "LLaRA (arXiv 2312.02445)",
        "candidates; generation",
    ),
)


METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*_MEMORIZATION, *_GENERATION, *_WRITINGS, *_CHOICES, *SUITE_LEVEL, *membership())
}
