// Command bench measures nemoclaw beside what it is compared with, in one run:
// runc and crun for a container's life and for exec, haproxy, nginx, squid and
// mitmproxy for the gateway, the same container without confinement for files. It judges nothing
// by its exit code, changes nothing on the machine, and uses nothing of
// nemoclaw's but the programs in bin/.
//
// Fair runs: all contestants take part in every round, in a new order each time
// and at least 150 ms apart, since the first write to a cgroup after a pause
// waits about 10 ms for the kernel, whoever makes it. The minimum and the 90th
// percentile stand beside the median, and ratios are taken within a round. All
// of it runs in a host of its own (mount, PID and network namespaces) that ends
// with the command, however that ends.
package main
