"""Serving many adapters: AdapterBank holds their tables, Adapter the parameters of one."""

from .adapter import Adapter
from .bank import AdapterBank
from .bank_layer import BankLayer
from .bank_writer import BankFullError

__all__ = ["Adapter", "AdapterBank", "BankFullError", "BankLayer"]
