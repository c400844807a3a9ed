"""Serving many adapters: AdapterBank holds their tables, Adapter the parameters of one."""

from .adapter import Adapter
from .bank import AdapterBank, BankFullError

__all__ = ["Adapter", "AdapterBank", "BankFullError"]
