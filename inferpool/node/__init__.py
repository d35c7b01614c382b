"""The provider's machine: offers, payment, engines, receipts."""
