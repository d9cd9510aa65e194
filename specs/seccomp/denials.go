package seccomp

import "golang.org/x/sys/unix"

// Denial forbids a system call, always or for certain arguments. Several
// denials of one call are alternatives: the first that fits answers.
type Denial struct {
	Call   string     // as in the kernel's tables
	Errno  unix.Errno // what the program is told
	If     []Test     // all must hold; none: always denied
	Why    string     // where it differs from its group's reason
	Source string     // what bears the reason out, where it is not the group's
}

// Test looks at one argument. Only its lower 32 bits are compared, which is
// all that the kernel reads of the arguments tested here (int or unsigned int
// in each call's definition); upper bits cannot be used to slip past.
type Test struct {
	Arg    int    // 0 to 5
	Mask   uint32 // bits compared; 0 means all
	In     bool   // true: holds if the value is among Values; false: if it is not
	Values []uint32
}

// Group is a set of denials with one reason. A policy names it group:NAME.
type Group struct {
	Name    string
	Why     string
	Source  string // manual pages, kernel versions, and attacks that needed these calls
	Denials []Denial
}

const (
	eperm  = unix.EPERM
	enosys = unix.ENOSYS
)

func calls(errno unix.Errno, names ...string) []Denial {
	var d []Denial
	for _, n := range names {
		d = append(d, Denial{Call: n, Errno: errno})
	}
	return d
}

// cloneNew are the CLONE_NEW* flags of clone(2) that make namespaces.
const cloneNew = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// socketTypeMask takes SOCK_NONBLOCK and SOCK_CLOEXEC off a socket's type
// (linux/net.h, SOCK_TYPE_MASK).
const socketTypeMask = 0xf

// reviewed is the newest system call that somebody has looked at and either put
// into a group or let be. Newer ones do not exist for a program (Compile), so
// that a new table of numbers opens nothing by itself.
const reviewed = "rseq_slice_yield"

// Groups is everything that no program in a sandbox may do, whatever the
// engine's profile says. A policy takes out single calls or whole groups
// (seccomp.allow), or adds single calls (seccomp.deny). DENIALS.md is made of it.
var Groups = []Group{
	{
		Name:   "debugging",
		Why:    "reading or steering another process: its secrets, its descriptors, its decisions",
		Source: "ptrace(2), process_vm_readv(2), pidfd_getfd(2), kcmp(2), process_madvise(2); CVE-2019-13272; before Linux 4.8 a tracer could change a call behind its filter (seccomp(2))",
		Denials: append(
			calls(eperm, "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise", "process_mrelease"),
			Denial{Call: "fanotify_init", Errno: eperm, Why: "watches which files others use, also those that Landlock hides",
				Source: "fanotify(7): without a capability since Linux 5.13"}),
	}, {
		Name:   "kernel",
		Why:    "programs, modules and clocks of the kernel itself: the host's, not the sandbox's",
		Source: "bpf(2), perf_event_open(2), init_module(2), kexec_load(2), syslog(2), iopl(2), adjtimex(2); CVE-2013-2094, CVE-2021-3490",
		Denials: append(
			calls(eperm, "bpf", "perf_event_open", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
				"syslog", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "iopl", "ioperm",
				"settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
			Denial{Call: "uselib", Errno: enosys, Why: "loads a library of the a.out days", Source: "uselib(2): glibc does not use it; CVE-2004-1235"},
			Denial{Call: "lookup_dcookie", Errno: enosys, Why: "tells paths that a profiler saw", Source: "lookup_dcookie(2): gone since Linux 6.8"}),
	}, {
		Name:   "mounts",
		Why:    "Landlock does not mediate mount_setattr, and a new mount or root may lie over what a rule names",
		Source: "mount_setattr(2), open_tree(2), fsconfig(2), chroot(2); CVE-2022-0185",
		Denials: append(
			calls(eperm, "mount", "umount2", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr", "move_mount", "mount_setattr", "pivot_root", "chroot"),
			Denial{Call: "statmount", Errno: enosys, Why: "tells where the host mounts what; programs fall back to /proc", Source: "statmount(2): Linux 6.8"},
			Denial{Call: "listmount", Errno: enosys, Why: "the same", Source: "listmount(2): Linux 6.8"},
			Denial{Call: "listns", Errno: enosys, Why: "the same of namespaces", Source: "Linux 6.19"}),
	}, {
		Name:   "namespaces",
		Why:    "a new namespace brings a full set of capabilities and most of the kernel's attack surface",
		Source: "unshare(2), setns(2), user_namespaces(7); CVE-2022-0492, CVE-2023-0386, CVE-2024-1086",
		Denials: []Denial{
			{Call: "unshare", Errno: eperm},
			{Call: "setns", Errno: eperm},
			{Call: "clone", Errno: eperm, If: []Test{{Arg: 0, Mask: cloneNew, In: false, Values: []uint32{0}}}},
			{Call: "clone3", Errno: enosys, Why: "its flags lie behind a pointer; told ENOSYS, libc uses clone", Source: "clone(2): Linux 5.3"},
		},
	}, {
		Name:    "asynchronous",
		Why:     "io_uring makes system calls that no filter sees; userfaultfd holds the kernel still in the middle of one",
		Source:  "io_uring_setup(2), seccomp(2), userfaultfd(2); CVE-2022-2590, CVE-2022-29582, CVE-2023-2598",
		Denials: calls(eperm, "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"),
	}, {
		Name:   "memory",
		Why:    "memory that the host cannot inspect, segments of 16-bit code, mappings that no check saw",
		Source: "memfd_secret(2), modify_ldt(2), personality(2)",
		Denials: []Denial{
			{Call: "memfd_secret", Errno: enosys, Source: "memfd_secret(2): Linux 5.14"},
			{Call: "modify_ldt", Errno: eperm, Source: "modify_ldt(2); CVE-2015-3290, CVE-2015-5157"},
			{Call: "remap_file_pages", Errno: enosys, Why: "changed a mapping without asking security modules", Source: "remap_file_pages(2): deprecated since Linux 3.16; CVE-2024-47745"},
			{Call: "personality", Errno: eperm, If: []Test{{Arg: 0, In: false, Values: []uint32{0, 0x8, 0x20000, 0x20008, 0xffffffff}}},
				Why: "other values turn protections off (READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE)", Source: "personality(2)"},
		},
	}, {
		Name:    "keyrings",
		Why:     "keys are not namespaced, and KEYCTL_SESSION_TO_PARENT once took a Landlock domain away",
		Source:  "keyrings(7), keyctl(2); CVE-2016-0728, CVE-2024-42318 (Landlock, until Linux 6.11)",
		Denials: calls(eperm, "add_key", "request_key", "keyctl"),
	}, {
		Name:   "handles",
		Why:    "a file opened by its number or by an empty path was never looked up, so nothing could be checked on the way",
		Source: "open_by_handle_at(2): it read the host's files from Docker in 2014 (\"shocker\"), and since Linux 6.12 it asks for less than CAP_DAC_READ_SEARCH",
		Denials: []Denial{
			{Call: "open_by_handle_at", Errno: eperm},
			{Call: "name_to_handle_at", Errno: eperm},
			execByDescriptor,
		},
	}, {
		Name:   "terminals",
		Why:    "input pushed into a terminal is typed by whoever owns it outside",
		Source: "ioctl_tty(2); TIOCSTI: CVE-2017-5226; TIOCLINUX: CVE-2023-28100; TIOCSETD, which loads line disciplines: CVE-2017-2636",
		Denials: []Denial{
			{Call: "ioctl", Errno: eperm, If: []Test{{Arg: 1, In: true, Values: []uint32{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD}}}},
		},
	}, {
		Name:   "sockets",
		Why:    "only what the network namespace fences and the gateway speaks; the rest is kernel attack surface",
		Source: "socket(2), address_families(7)",
		Denials: append(
			socketDenials("socket"),
			Denial{Call: "socketpair", Errno: unix.EAFNOSUPPORT, If: []Test{{Arg: 0, In: false, Values: []uint32{unix.AF_UNIX}}},
				Why: "pairs of other families", Source: "socketpair(2)"},
		),
	},
}

// OthersLimits is for sandboxes that share a pid namespace: with prlimit(2) a
// program ends any process of its own user id (RLIMIT_CPU), and Landlock, which
// keeps its signals inside, does not mediate that. 0 is the caller.
var OthersLimits = Denial{Call: "prlimit64", Errno: eperm, If: []Test{{Arg: 0, In: false, Values: []uint32{0}}},
	Why: "the limits of another process: RLIMIT_CPU ends it", Source: "prlimit(2); landlock(7) does not mediate it"}

// WriteExecute is for policies under which nothing can be executed that was
// written: a file without a name is on no mount that could forbid it.
var WriteExecute = Group{
	Name:    "write_execute",
	Why:     "a program that was brought along, in a file that lies in memory only",
	Source:  "memfd_create(2), execveat(2)",
	Denials: append(calls(eperm, "memfd_create"), execByDescriptor), // whatever seccomp.allow says of handles
}

// execByDescriptor is fexecve(3), which takes /proc/self/fd instead when told
// ENOSYS.
var execByDescriptor = Denial{Call: "execveat", Errno: enosys, If: []Test{{Arg: 4, Mask: unix.AT_EMPTY_PATH, In: true, Values: []uint32{unix.AT_EMPTY_PATH}}},
	Why: "told ENOSYS, libc's fexecve takes /proc/self/fd", Source: "execveat(2), fexecve(3)"}

// socketDenials is the allow list of socket families, types and protocols,
// turned round: UNIX; of INET and INET6 streams and datagrams that are TCP, UDP
// or ping; and of NETLINK the routing protocol alone, which libc's getaddrinfo
// needs. Go, which prefers MPTCP for listeners, takes TCP when told
// EPROTONOSUPPORT.
func socketDenials(call string) []Denial {
	internet := Test{Arg: 0, In: true, Values: []uint32{unix.AF_INET, unix.AF_INET6}}
	return []Denial{
		{Call: call, Errno: unix.EAFNOSUPPORT, Why: "other families: vsock reaches the hypervisor, alg and the rest are attack surface",
			Source: "vsock(7), packet(7), address_families(7); CVE-2017-7308 (packet), CVE-2021-26708 (vsock), CVE-2022-0435 (tipc)",
			If:     []Test{{Arg: 0, In: false, Values: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}}}},
		{Call: call, Errno: unix.EPROTONOSUPPORT, Why: "netlink protocols other than routing", Source: "netlink(7); CVE-2022-34918, CVE-2024-1086 (netfilter)", If: []Test{
			{Arg: 0, In: true, Values: []uint32{unix.AF_NETLINK}},
			{Arg: 2, In: false, Values: []uint32{unix.NETLINK_ROUTE}}}},
		{Call: call, Errno: eperm, Why: "raw and packet sockets", Source: "raw(7), packet(7); CVE-2020-14386", If: []Test{
			{Arg: 0, In: false, Values: []uint32{unix.AF_NETLINK}},
			{Arg: 1, Mask: socketTypeMask, In: true, Values: []uint32{unix.SOCK_RAW, unix.SOCK_PACKET, unix.SOCK_RDM}}}},
		{Call: call, Errno: unix.ESOCKTNOSUPPORT, Why: "types that choose SCTP or DCCP by themselves", Source: "sctp(7); CVE-2017-6074 (DCCP)", If: []Test{
			internet,
			{Arg: 1, Mask: socketTypeMask, In: false, Values: []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM}}}},
		{Call: call, Errno: unix.EPROTONOSUPPORT, Why: "protocols other than TCP, UDP and ping: SCTP, SMC, L2TP, MPTCP are carried nowhere", Source: "ip(7), protocols(5); CVE-2021-23133 (SCTP)", If: []Test{
			internet,
			{Arg: 2, In: false, Values: []uint32{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}}}},
	}
}

// workerGroup is what the gateway's worker does without besides: it speaks on
// the sockets it was given and on those it makes.
var workerGroup = Group{
	Name: "worker",
	Why:  "the worker reads bytes of the sandbox; it starts no program and opens no file",
	Denials: calls(eperm, "execve", "execveat", "fork", "vfork", "open", "openat", "openat2", "creat", "unlink", "unlinkat", "rename", "renameat", "renameat2",
		"link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown",
		"setuid", "setgid", "setresuid", "setresgid", "setgroups", "capset", "kill", "tkill", "pidfd_open", "pidfd_send_signal", "inotify_init1"),
}
