package seccomp

import "golang.org/x/sys/unix"

// Denial forbids a system call, always or for certain arguments. Several
// denials of one call are alternatives: the first that fits answers.
type Denial struct {
	Call  string     // as in the kernel's tables
	Errno unix.Errno // what the program is told
	If    []Test     // all must hold; none: always denied
	Why   string     // where it differs from its group's reason
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

// Group is a set of denials with one reason.
type Group struct {
	Name    string
	Why     string
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

// Groups is everything that no program in a sandbox may do, whatever the
// engine's profile says. A policy takes out single calls (seccomp.allow) or
// adds to them (seccomp.deny).
var Groups = []Group{
	{
		Name:    "debugging",
		Why:     "reading or steering another process: its secrets, its descriptors, its decisions",
		Denials: calls(eperm, "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise", "process_mrelease"),
	}, {
		Name: "kernel",
		Why:  "programs, modules and clocks of the kernel itself: the host's, not the sandbox's",
		Denials: calls(eperm, "bpf", "perf_event_open", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
			"syslog", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "iopl", "ioperm",
			"settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
	}, {
		Name: "mounts",
		Why:  "Landlock does not mediate mount_setattr, and a new mount may lie over what a rule names",
		Denials: append(
			calls(eperm, "mount", "umount2", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr", "move_mount", "mount_setattr", "pivot_root"),
			calls(enosys, "statmount", "listmount", "listns")...),
	}, {
		Name: "namespaces",
		Why:  "a new namespace brings a full set of capabilities and most of the kernel's attack surface",
		Denials: []Denial{
			{Call: "unshare", Errno: eperm},
			{Call: "setns", Errno: eperm},
			{Call: "clone", Errno: eperm, If: []Test{{Arg: 0, Mask: cloneNew, In: false, Values: []uint32{0}}}},
			{Call: "clone3", Errno: enosys, Why: "its flags lie behind a pointer; told ENOSYS, libc uses clone"},
		},
	}, {
		Name:    "asynchronous",
		Why:     "io_uring makes system calls that no filter sees; userfaultfd holds the kernel still in the middle of one",
		Denials: calls(eperm, "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"),
	}, {
		Name: "memory",
		Why:  "memory that the host cannot inspect, and segments of 16-bit code",
		Denials: []Denial{
			{Call: "memfd_secret", Errno: enosys},
			{Call: "modify_ldt", Errno: eperm},
			{Call: "personality", Errno: eperm, If: []Test{{Arg: 0, In: false, Values: []uint32{0, 0x8, 0x20000, 0x20008, 0xffffffff}}},
				Why: "other values turn protections off (READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE)"},
		},
	}, {
		Name:    "keyrings",
		Why:     "keys are not namespaced, and KEYCTL_SESSION_TO_PARENT once took a Landlock domain away (before Linux 6.11)",
		Denials: calls(eperm, "add_key", "request_key", "keyctl"),
	}, {
		Name: "handles",
		Why:  "a file opened by its number or by an empty path was never looked up, so nothing could be checked on the way",
		Denials: []Denial{
			{Call: "open_by_handle_at", Errno: eperm},
			{Call: "name_to_handle_at", Errno: eperm},
			{Call: "execveat", Errno: enosys, If: []Test{{Arg: 4, Mask: unix.AT_EMPTY_PATH, In: true, Values: []uint32{unix.AT_EMPTY_PATH}}},
				Why: "told ENOSYS, libc's fexecve takes /proc/self/fd"},
		},
	}, {
		Name: "terminals",
		Why:  "input pushed into a terminal is typed by whoever owns it outside",
		Denials: []Denial{
			{Call: "ioctl", Errno: eperm, If: []Test{{Arg: 1, In: true, Values: []uint32{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD}}}},
		},
	}, {
		Name: "sockets",
		Why:  "only families that the network namespace fences: vsock reaches the hypervisor, alg and the rest are kernel attack surface",
		Denials: append(
			socketDenials("socket"),
			Denial{Call: "socketpair", Errno: unix.EAFNOSUPPORT, If: []Test{{Arg: 0, In: false, Values: []uint32{unix.AF_UNIX}}}},
		),
	},
}

// OthersLimits is for sandboxes that share a pid namespace: with prlimit(2) a
// program ends any process of its own user id (RLIMIT_CPU), and Landlock, which
// keeps its signals inside, does not mediate that. 0 is the caller.
var OthersLimits = Denial{Call: "prlimit64", Errno: eperm, If: []Test{{Arg: 0, In: false, Values: []uint32{0}}},
	Why: "the limits of another process"}

// socketDenials is the allow list of socket families, types and protocols,
// turned round: UNIX, INET and INET6 but neither raw nor packet sockets, and of
// NETLINK the routing protocol alone, which libc's getaddrinfo needs.
func socketDenials(call string) []Denial {
	return []Denial{
		{Call: call, Errno: unix.EAFNOSUPPORT, If: []Test{
			{Arg: 0, In: false, Values: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}}}},
		{Call: call, Errno: unix.EPROTONOSUPPORT, Why: "netlink protocols other than routing", If: []Test{
			{Arg: 0, In: true, Values: []uint32{unix.AF_NETLINK}},
			{Arg: 2, In: false, Values: []uint32{unix.NETLINK_ROUTE}}}},
		{Call: call, Errno: eperm, Why: "raw and packet sockets", If: []Test{
			{Arg: 0, In: false, Values: []uint32{unix.AF_NETLINK}},
			{Arg: 1, Mask: socketTypeMask, In: true, Values: []uint32{unix.SOCK_RAW, unix.SOCK_PACKET, unix.SOCK_RDM}}}},
	}
}

// workerGroup is what the gateway's worker does without besides: it speaks on
// the sockets it was given and on those it makes.
var workerGroup = Group{
	Name: "worker",
	Why:  "the worker reads bytes of the sandbox; it starts no program and opens no file",
	Denials: calls(eperm, "execve", "execveat", "fork", "vfork", "open", "openat", "openat2", "creat", "unlink", "unlinkat", "rename", "renameat", "renameat2",
		"link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown",
		"chroot", "setuid", "setgid", "setresuid", "setresgid", "setgroups", "capset", "kill", "tkill", "pidfd_open", "pidfd_send_signal", "inotify_init1", "fanotify_init"),
}
