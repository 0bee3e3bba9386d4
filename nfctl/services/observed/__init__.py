"""Services read back from iptables rules, those that kube-proxy made or nfctl."""
