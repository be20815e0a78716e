"""Checks that a HyperNetwork was trained for jobs with the settings of a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.families.registry import base_digest, open_family
from dreambooth_trainer.hypernetwork.files import PATH, LayerShape, NetworkConfig, pinned_network, read_config
from dreambooth_trainer.planning.plan import Plan


def with_pinned_network(plan: Plan, folder: Path) -> Plan:
    """The plan with the commit of its HyperNetwork, if it has one that is on the Hub.

    Args:
        folder: local folder of the base model, which may be without weights.

    Raises:
        UserError: the network was not found, or was trained for other jobs; with all differences.
        TransientError: the Hub cannot be reached.
    """
    if plan.hyper_network is None:
        return plan
    plan = plan.model_copy(update={"hyper_network": pinned_network(plan.hyper_network)})
    assert plan.hyper_network is not None
    config = read_config(plan.hyper_network)
    issues = list(_differences(plan, config)) or list(_other_layers(plan, config, folder))
    if issues:
        raise UserError(issues)
    return plan


def _differences(plan: Plan, config: NetworkConfig) -> Iterator[ValidationIssue]:
    adapters, network = plan.spec.training.adapters, plan.hyper_network
    assert network is not None
    if base_digest(plan.model) != config.base_digest:
        rule = f"was trained for {config.base_model}, whose weights are not those of {plan.model.id}"
        yield ValidationIssue(PATH, network.id, rule, f"set model.id: {config.base_model}, or another network")
    subject = f"the network {network.id} was trained for"
    path, alpha = "spec.training.lora", adapters.alpha or adapters.rank
    identifier = plan.subjects[0].identifier
    if adapters.rank != config.rank:
        rule = f"{subject} rank {config.rank}"
        yield ValidationIssue(f"{path}.rank", adapters.rank, rule, f"set rank: {config.rank}")
    if alpha != config.alpha:
        rule = f"{subject} alpha {config.alpha:g}"
        yield ValidationIssue(f"{path}.alpha", alpha, rule, f"set alpha: {config.alpha:g}")
    if len(plan.subjects) > 1:
        rule = "a HyperNetwork predicts the adapter of one subject"
        yield ValidationIssue("spec.subjects", len(plan.subjects), rule, "set subject, or remove hyperNetwork")
    elif identifier != config.identifier:
        rule = f"{subject} the identifier {config.identifier!r}"
        yield ValidationIssue("spec.subject.identifier", identifier, rule, f"set identifier: {config.identifier}")
    if plan.train_text_encoder:
        rule = "a HyperNetwork predicts no adapters of text encoders"
        yield ValidationIssue("spec.training.textEncoder.train", True, rule, "remove train, or remove hyperNetwork")
    if plan.super_resolution is not None:
        rule = "a HyperNetwork predicts the adapter of one stage"
        value = plan.super_resolution.model.id
        yield ValidationIssue("spec.model.superResolution", value, rule, "remove hyperNetwork")


def _other_layers(plan: Plan, config: NetworkConfig, folder: Path) -> Iterator[ValidationIssue]:
    trained = target_layers(folder, plan)
    if different := sorted(
        name for name in trained.keys() | config.layers.keys() if trained.get(name) != config.layers.get(name)
    ):
        rule = f"predicts other layers than this version trains, among them {different[0]}"
        network = plan.hyper_network
        yield ValidationIssue(PATH, network and network.id, rule, "train the network again with this version")


def target_layers(folder: Path, plan: Plan) -> dict[str, LayerShape]:
    """The layers of the denoiser that get adapters, with the shapes of these. Reads configuration files only."""
    import torch

    from dreambooth_trainer.methods.lora import add_adapters, named_products

    family = open_family(folder)
    with torch.device("meta"):
        denoiser = family.open(folder, [family.denoiser], empty=True).modules[family.denoiser]
        add_adapters(denoiser, plan.spec.training.adapters, family.lora_target_modules()[family.denoiser])
    found = named_products(denoiser)
    return {name: LayerShape(down=tuple(down.shape), up=tuple(up.shape)) for name, down, up, _ in found}
