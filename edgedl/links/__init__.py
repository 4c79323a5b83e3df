"""How devices are reached: OpenSSH, adb, and the Pythons that run there."""
