"""Experiments on neurons: what a neuron does to the model's output. Each function is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spin_native.analyses.ablation import Ablation, ablation_values
    from spin_native.analyses.ablation_effects import AblationEffects, ablate_logits, ablate_probe
    from spin_native.analyses.gradient_experiments import (
        efficiency_curve,
        few_shot_curve,
        flexibility_curve,
        interdependency_curve,
        transfer_matrix,
    )
    from spin_native.analyses.gradient_probes import (
        ActivationProbe,
        ForestProbe,
        MagnitudeProbe,
        PolarityProbe,
        activation_scores,
        skill_scores,
    )
    from spin_native.analyses.gradients import NeuronGradients, gradient_blocks, neuron_gradients
    from spin_native.analyses.integrated import integrated_gradients
    from spin_native.analyses.interventions import InterventionCurves, correlation, intervention_curves
    from spin_native.analyses.multiple_choice import LeakReport, Questions, leaks, read_questions
    from spin_native.analyses.perturbation import FinalProbe, Perturbation, perturbation_curve
    from spin_native.analyses.prompt_tuning import tune_prompt
    from spin_native.analyses.prompted_skills import prompted_skill_neurons
    from spin_native.analyses.pruning import ActivationMeans, Pruned, activation_means, prune, read_importance
    from spin_native.analyses.randomized import randomized
    from spin_native.analyses.selections import selection_stability, selector, token_selectivity
    from spin_native.analyses.skills import SkillNeurons, skill_neurons, text_skill_neurons
    from spin_native.analyses.soft_prompts import SoftPrompt
    from spin_native.analyses.transfer import Transferability, transferability

_MODULES = {
    "Ablation": "ablation",
    "AblationEffects": "ablation_effects",
    "ActivationMeans": "pruning",
    "ActivationProbe": "gradient_probes",
    "FinalProbe": "perturbation",
    "ForestProbe": "gradient_probes",
    "InterventionCurves": "interventions",
    "LeakReport": "multiple_choice",
    "MagnitudeProbe": "gradient_probes",
    "NeuronGradients": "gradients",
    "Perturbation": "perturbation",
    "PolarityProbe": "gradient_probes",
    "Pruned": "pruning",
    "Questions": "multiple_choice",
    "SkillNeurons": "skills",
    "SoftPrompt": "soft_prompts",
    "Transferability": "transfer",
    "ablate_logits": "ablation_effects",
    "ablate_probe": "ablation_effects",
    "ablation_values": "ablation",
    "activation_means": "pruning",
    "activation_scores": "gradient_probes",
    "correlation": "interventions",
    "efficiency_curve": "gradient_experiments",
    "few_shot_curve": "gradient_experiments",
    "flexibility_curve": "gradient_experiments",
    "gradient_blocks": "gradients",
    "integrated_gradients": "integrated",
    "interdependency_curve": "gradient_experiments",
    "intervention_curves": "interventions",
    "leaks": "multiple_choice",
    "neuron_gradients": "gradients",
    "perturbation_curve": "perturbation",
    "prompted_skill_neurons": "prompted_skills",
    "prune": "pruning",
    "randomized": "randomized",
    "read_importance": "pruning",
    "read_questions": "multiple_choice",
    "selection_stability": "selections",
    "selector": "selections",
    "skill_neurons": "skills",
    "skill_scores": "gradient_probes",
    "text_skill_neurons": "skills",
    "token_selectivity": "selections",
    "transfer_matrix": "gradient_experiments",
    "transferability": "transfer",
    "tune_prompt": "prompt_tuning",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spin_native.analyses' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"spin_native.analyses.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
