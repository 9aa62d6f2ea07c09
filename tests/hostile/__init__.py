"""Attacks with real parts: what a hostile algorithm, researcher or server tries, and what holds."""
