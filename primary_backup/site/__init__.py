"""The configuration files of a pair, made from one small site file."""
