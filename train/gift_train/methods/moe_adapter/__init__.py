"""MoE-Adapter: the method, its mixtures of experts, and the selector that picks a router."""

from gift_train.methods.moe_adapter.method import MoeAdapter as MoeAdapter
