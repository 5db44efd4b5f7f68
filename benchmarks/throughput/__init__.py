"""How fast rollouts and updates are, beside google-tunix and transformers: python -m benchmarks.throughput"""
