// Package witness reads, in the kernel's own memory, what confines a process:
// its Landlock domain with every rule, and its seccomp filters instruction by
// instruction. It changes nothing, stops no process and judges nothing, and
// what it cannot read for sure it does not tell.
//
// # Why
//
// Linux shows neither outside of the process: /proc/PID/status has the number
// of seccomp filters and nothing of Landlock, and PTRACE_SECCOMP_GET_FILTER
// stops its tracee. A BPF program may look (bpf-helpers(7),
// bpf_probe_read_kernel), and the kernel describes its own structures
// (/sys/kernel/btf/vmlinux), so that no layout is assumed. Two programs of
// twenty instructions are all: one lists the threads of the machine with the
// three words that lead on, the other copies memory at an address.
//
// Where Landlock keeps its word among those of other security modules is not
// described anywhere. A calibration finds it: a thread of ours enters a domain of
// known content, and the witness is believed only once it has read that
// content there, where there was nothing before.
package witness
