package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ask runs the filter on a system call as the kernel would: the interpreter
// of golang.org/x/net/bpf reads seccomp_data big-endian, so it is given so.
func ask(t *testing.T, filter []unix.SockFilter, arch, nr uint32, args ...uint64) string {
	t.Helper()
	var raw []bpf.RawInstruction
	for _, i := range filter {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter does not disassemble")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))       // where the kernel has the lower half
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32)) // and the upper
	}
	ret, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	switch uint32(ret) & 0xffff0000 {
	case unix.SECCOMP_RET_ALLOW:
		return "allow"
	case unix.SECCOMP_RET_ERRNO:
		return unix.ErrnoName(unix.Errno(ret & 0xffff))
	}
	return fmt.Sprintf("%#x", ret)
}

func compiled(t *testing.T, deny, allow []string) []unix.SockFilter {
	t.Helper()
	d, err := Denials(deny, allow, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What is denied whatever the arguments, by the answer. The list is written out
// by hand: it is the promise, and Groups is what keeps it.
func TestDenied(t *testing.T) {
	filter := compiled(t, nil, nil)
	for want, names := range map[string]string{
		"EPERM": `ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise process_mrelease fanotify_init
			bpf perf_event_open init_module finit_module delete_module kexec_load kexec_file_load syslog reboot swapon swapoff acct quotactl quotactl_fd
			iopl ioperm settimeofday clock_settime clock_adjtime adjtimex
			mount umount2 fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr pivot_root chroot
			unshare setns io_uring_setup io_uring_enter io_uring_register userfaultfd modify_ldt
			add_key request_key keyctl open_by_handle_at name_to_handle_at`,
		"ENOSYS": `uselib lookup_dcookie statmount listmount listns clone3 memfd_secret remap_file_pages`,
	} {
		for _, name := range strings.Fields(names) {
			nr, ok := numbers[name]
			if !ok { // iopl on arm64
				continue
			}
			for _, arg := range []uint64{0, 1, 1<<64 - 1} {
				if got := ask(t, filter, auditArch, nr, arg, arg, arg, arg, arg, arg); got != want {
					t.Errorf("%s(%#x, ...): %s, want %s", name, arg, got, want)
				}
			}
		}
	}
}

// What the second filter answers where arguments decide, and what it lets be.
func TestFilter(t *testing.T) {
	const newest = 1 << 20
	high := uint64(1) << 32 // bits that the kernel does not read
	filter := compiled(t, nil, nil)
	for _, test := range []struct {
		call string
		args []uint64
		want string
	}{
		{"read", nil, "allow"},
		{"execve", nil, "allow"},
		{"landlock_restrict_self", nil, "allow"}, // nested sandboxes are welcome
		{"seccomp", nil, "allow"},
		{"memfd_create", nil, "allow"},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM}, "allow"},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, "allow"},
		{"clone", []uint64{unix.CLONE_NEWUSER}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWNET | uint64(unix.SIGCHLD)}, "EPERM"},
		{"clone", []uint64{high | unix.CLONE_NEWNS}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWPID}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWIPC}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWUTS}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWCGROUP}, "EPERM"},
		{"personality", []uint64{0}, "allow"},
		{"personality", []uint64{0xffffffff}, "allow"},
		{"personality", []uint64{0x8}, "allow"},
		{"personality", []uint64{0x20000}, "allow"},
		{"personality", []uint64{0x20008}, "allow"},
		{"personality", []uint64{0x0040000}, "EPERM"},
		{"personality", []uint64{0x0400000}, "EPERM"},
		{"execveat", []uint64{3, 0, 0, 0, 0}, "allow"},
		{"execveat", []uint64{3, 0, 0, 0, unix.AT_EMPTY_PATH}, "ENOSYS"},
		{"execveat", []uint64{3, 0, 0, 0, unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW}, "ENOSYS"},
		{"ioctl", []uint64{0, unix.TCGETS}, "allow"},
		{"ioctl", []uint64{0, unix.TIOCSTI}, "EPERM"},
		{"ioctl", []uint64{0, high | unix.TIOCSTI}, "EPERM"},
		{"ioctl", []uint64{0, unix.TIOCLINUX}, "EPERM"},
		{"ioctl", []uint64{0, unix.TIOCSETD}, "EPERM"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, 0}, "allow"},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, 0}, "allow"},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET, 0}, "allow"},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, "allow"},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, "EPROTONOSUPPORT"},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_NETFILTER}, "EPROTONOSUPPORT"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, "EPERM"},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_RAW | unix.SOCK_NONBLOCK, 0}, "EPERM"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_PACKET, 0}, "EPERM"},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_RDM, 0}, "EPERM"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, "allow"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, "allow"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "allow"}, // ping, which the fence answers
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6}, "allow"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, "EPROTONOSUPPORT"},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM, high | unix.IPPROTO_MPTCP}, "EPROTONOSUPPORT"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP}, "EPROTONOSUPPORT"},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_SEQPACKET, 0}, "ESOCKTNOSUPPORT"}, // SCTP by another name
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DCCP | unix.SOCK_CLOEXEC, 0}, "ESOCKTNOSUPPORT"},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 2}, "allow"}, // the kernel's to judge
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW, 0}, "EAFNOSUPPORT"},
		{"socket", []uint64{high | unix.AF_PACKET, unix.SOCK_DGRAM, 0}, "EAFNOSUPPORT"},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, "EAFNOSUPPORT"},
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, "EAFNOSUPPORT"},
		{"socketpair", []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, "allow"},
		{"socketpair", []uint64{unix.AF_TIPC, unix.SOCK_STREAM, 0}, "EAFNOSUPPORT"},
	} {
		if got := ask(t, filter, auditArch, numbers[test.call], test.args...); got != test.want {
			t.Errorf("%s(%#x): %s, want %s", test.call, test.args, got, test.want)
		}
	}
	if got := ask(t, filter, auditArch, newest); x32Bit == 0 && got != "ENOSYS" {
		t.Errorf("a call newer than the table: %s, want ENOSYS", got)
	}
	if x32Bit != 0 {
		if got := ask(t, filter, auditArch, x32Bit|numbers["read"]); got != "EPERM" {
			t.Errorf("an x32 call: %s, want EPERM", got)
		}
	}
	if got := ask(t, filter, unix.AUDIT_ARCH_I386, 3); got != "EPERM" {
		t.Errorf("a 32-bit call: %s, want EPERM", got)
	}
}

// A policy's allow takes out what it names, a call or a group, and nothing else.
func TestAllow(t *testing.T) {
	all := compiled(t, nil, nil)
	for _, g := range Groups {
		without := compiled(t, nil, []string{"group:" + g.Name})
		for _, other := range Groups {
			for _, d := range other.Denials {
				nr, ok := numbers[d.Call]
				if !ok || len(d.If) > 0 {
					continue
				}
				want := unix.ErrnoName(d.Errno)
				if got := ask(t, all, auditArch, nr); got != want {
					t.Errorf("%s answers %s, want %s", d.Call, got, want)
				}
				if other.Name == g.Name {
					want = "allow"
				}
				if got := ask(t, without, auditArch, nr); got != want {
					t.Errorf("without group %s, %s answers %s, want %s", g.Name, d.Call, got, want)
				}
			}
		}
		for _, d := range g.Denials {
			nr, ok := numbers[d.Call]
			if !ok || len(d.If) > 0 {
				continue
			}
			alone := compiled(t, nil, []string{d.Call})
			if got := ask(t, alone, auditArch, nr); got != "allow" {
				t.Errorf("%s taken out by the policy answers %s", d.Call, got)
			}
			if d.Call != "ptrace" && ask(t, alone, auditArch, numbers["ptrace"]) != "EPERM" {
				t.Errorf("taking out %s took out ptrace", d.Call)
			}
		}
	}
	// A call that is denied by name stays so, whatever group is allowed.
	if got := ask(t, compiled(t, []string{"kcmp"}, []string{"group:debugging"}), auditArch, numbers["kcmp"]); got != "EPERM" {
		t.Errorf("kcmp, denied by name, answers %s", got)
	}
}

// Calls that nobody has looked at do not exist, be they newer than the table or
// in one of its gaps, where kernels put new ones too (uretprobe); and a new table
// of numbers does not pass unseen.
func TestUnknownCalls(t *testing.T) {
	filter := compiled(t, nil, nil)
	known := map[uint32]string{}
	for name, nr := range numbers {
		known[nr] = name
	}
	for nr := range uint32(1 << 12) {
		got := ask(t, filter, auditArch, nr, 0, 0, 0)
		if known[nr] == "" && got != "ENOSYS" {
			t.Errorf("number %d, which is no call: %s, want ENOSYS", nr, got)
		}
	}
	for name, nr := range numbers {
		if nr > numbers[reviewed] {
			t.Errorf("%s is newer than %s: put it into a group or let it be, then move reviewed", name, reviewed)
		}
	}
	for _, nr := range []uint32{1 << 20, 1<<30 - 1} {
		if got := ask(t, filter, auditArch, nr); got != "ENOSYS" {
			t.Errorf("number %#x: %s, want ENOSYS", nr, got)
		}
	}
}

// A policy's words are taken at their word or refused.
func TestDenials(t *testing.T) {
	if got := ask(t, compiled(t, []string{"memfd_create"}, nil), auditArch, numbers["memfd_create"]); got != "EPERM" {
		t.Errorf("a call that the policy denies answers %s", got)
	}
	for _, test := range []struct{ deny, allow, fault string }{
		{"nosuchcall", "", `there is no system call "nosuchcall"`},
		{"execve", "", `cannot deny system call "execve": no program starts without it`},
		{"exit_group", "", `cannot deny system call "exit_group": no program starts without it`},
		{"group:debugging", "", `cannot deny group:debugging: every group is denied already; name single calls`},
		{"", "read", `cannot allow system call "read": nothing of ours denies it`},
		{"", "nosuchcall", `there is no system call "nosuchcall"`},
		{"", "group:nosuch", `there is no group "nosuch"`},
		{"", "debugging", `there is no system call "debugging"`},
	} {
		_, err := Denials(slices.DeleteFunc([]string{test.deny}, empty), slices.DeleteFunc([]string{test.allow}, empty), nil)
		if err == nil || err.Error() != test.fault {
			t.Errorf("got %v, want %s", err, test.fault)
		}
	}
}

func empty(s string) bool { return s == "" }

// What is denied only where the policy or the spec makes it necessary.
func TestExtra(t *testing.T) {
	denials, err := Denials(nil, []string{"group:handles"}, append(slices.Clone(WriteExecute.Denials), OthersLimits))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(denials)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		call          string
		args          []uint64
		with, without string
	}{
		{"memfd_create", nil, "EPERM", "allow"},
		{"execveat", []uint64{3, 0, 0, 0, unix.AT_EMPTY_PATH}, "ENOSYS", "ENOSYS"},
		{"prlimit64", []uint64{0, unix.RLIMIT_CPU}, "allow", "allow"},
		{"prlimit64", []uint64{7, unix.RLIMIT_CPU}, "EPERM", "allow"},
	} {
		if got := ask(t, f, auditArch, numbers[test.call], test.args...); got != test.with {
			t.Errorf("%s%v: %s, want %s", test.call, test.args, got, test.with)
		}
		if got := ask(t, compiled(t, nil, nil), auditArch, numbers[test.call], test.args...); got != test.without {
			t.Errorf("%s%v without them: %s, want %s", test.call, test.args, got, test.without)
		}
	}
}

// The gateway's worker starts no program and opens no file.
func TestWorker(t *testing.T) {
	f, err := Worker(42)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`ptrace listen socketpair
		execve execveat fork vfork open openat openat2 creat unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat mkdir mkdirat
		mknod mknodat chmod fchmod fchmodat chown fchown fchownat lchown chroot setuid setgid setresuid setresgid setgroups capset
		kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal inotify_init1 fanotify_init
		setpriority sched_setaffinity sched_setscheduler sched_setparam sched_setattr ioprio_set
		shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink`) {
		nr, ok := numbers[name]
		if !ok { // fork on arm64
			continue
		}
		if got := ask(t, f, auditArch, nr, 1, 1, 1, 1, unix.AT_EMPTY_PATH); got != "EPERM" && got != "ENOSYS" && got != "EAFNOSUPPORT" {
			t.Errorf("%s: %s, want a refusal", name, got)
		}
		if got := ask(t, f, auditArch, nr); got != "EPERM" && (got != "EAFNOSUPPORT" || name != "socketpair") {
			t.Errorf("%s: %s, want EPERM", name, got)
		}
	}
	for _, name := range []string{"accept4", "splice", "sendmsg", "futex"} {
		if got := ask(t, f, auditArch, numbers[name]); got != "allow" {
			t.Errorf("%s: %s, want allow", name, got)
		}
	}
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	for _, test := range []struct {
		call string
		args []uint64
		want string
	}{
		{"clone", []uint64{thread}, "allow"},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, "EPERM"},
		{"tgkill", []uint64{42, 43}, "allow"},
		{"tgkill", []uint64{1, 1}, "EPERM"},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM}, "allow"},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, "allow"},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, "EPERM"},
		{"socketpair", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, "EPERM"},
		{"fcntl", []uint64{3, unix.F_SETFL}, "allow"},
		{"fcntl", []uint64{3, unix.F_SETOWN}, "EPERM"},
		{"fcntl", []uint64{3, unix.F_SETOWN_EX}, "EPERM"},
		{"fcntl", []uint64{3, unix.F_SETSIG}, "EPERM"},
		{"ioctl", []uint64{3, 0x8901}, "EPERM"}, // FIOSETOWN
		{"ioctl", []uint64{3, 0x8902}, "EPERM"}, // SIOCSPGRP
		{"ioctl", []uint64{3, 0x5421}, "allow"}, // FIONBIO
		{"prlimit64", []uint64{42, unix.RLIMIT_NOFILE}, "allow"},
		{"socketpair", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, "EPERM"},
		{"prlimit64", []uint64{0, unix.RLIMIT_NOFILE}, "allow"},
		{"prlimit64", []uint64{1, unix.RLIMIT_NOFILE}, "EPERM"},
	} {
		if got := ask(t, f, auditArch, numbers[test.call], test.args...); got != test.want {
			t.Errorf("%s%v: %s, want %s", test.call, test.args, got, test.want)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		d, _ := Denials(nil, nil, nil)
		if _, err := Compile(d); err != nil {
			b.Fatal(err)
		}
	}
}
