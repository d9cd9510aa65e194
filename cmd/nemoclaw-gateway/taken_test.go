package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/seccomp"
)

// grabs are what a worker that obeys its sandbox might try against the rest of
// the machine. Each returns an errno, 0 if it came through.
// reports is like the socket that a worker is given on which the kernel reports
// refused packets, of a namespace of its own.
func grabs(socket string, victim, reports int) []struct {
	name string
	try  func() error
} {
	fd := func(fd int, err error) error {
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	call := func(nr uintptr, args ...uintptr) error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
	return []struct {
		name string
		try  func() error
	}{
		{"a socket of the host, by its file", func() error {
			s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			return unix.Connect(s, &unix.SockaddrUnix{Name: socket})
		}},
		{"the rules of the fence, by the socket that tells of them", func() error { return configure(reports) }},
		{"a file of everybody's", func() error { return fd(unix.Open("/etc/passwd", unix.O_RDONLY, 0)) }},
		{"its own memory", func() error { return fd(unix.Open("/proc/self/mem", unix.O_RDWR, 0)) }},
		{"a signal by tgkill", func() error { return unix.Tgkill(victim, victim, 0) }},
		{"a signal by kill", func() error { return unix.Kill(victim, 0) }},
		{"another's limits", func() error { return unix.Prlimit(victim, unix.RLIMIT_NOFILE, nil, new(unix.Rlimit)) }},
		{"another's pidfd", func() error { return fd(unix.PidfdOpen(victim, 0)) }},
		{"another's memory", func() error { return call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(victim)) }},
		{"memory shared with the host", func() error { return call(unix.SYS_SHMGET, 0, 4096, unix.IPC_CREAT) }},
		{"a raw socket", func() error { return fd(unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)) }},
		{"a packet socket", func() error { return fd(unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)) }},
		{"the hypervisor", func() error { return fd(unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)) }},
		{"a server in the uplink", func() error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			return unix.Listen(s, 1)
		}},
		{"a namespace", func() error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) }},
		{"root again", func() error { return call(unix.SYS_SETRESUID, 0, 0, 0) }},
		{"a program", func() error { return call(unix.SYS_EXECVE, 0, 0, 0) }},
		{"a child that outlives it", func() error { // a child of nobody ends at once: the flags are wrong for any but a refusal
			return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_SIGHAND)
		}},
	}
}

// roles are how the gateway's processes that read strangers' bytes are confined.
var roles = map[string]func() error{
	"worker":  func() error { return confine(seccomp.Worker) },
	"denials": func() error { return confine(seccomp.Reader, "/proc") },
}

// reporting returns a netfilter socket of a new network namespace, which is this
// thread's from now on.
func reporting() (int, error) {
	goruntime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
}

// configure asks netfilter for something, on fd. Any message takes the capability
// (nfnetlink_rcv in the kernel), and whoever has it may take the fence away.
func configure(fd int) error {
	command := []byte{1 /* NFULNL_CFG_CMD_BIND */, 0, 0, 0}
	m := netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | 1 /* NFULNL_MSG_CONFIG */, Flags: netlink.Request | netlink.Acknowledge, Length: 28}}
	m.Data = append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 1 /* the group */, 5, 0, 1 /* NFULA_CFG_CMD */, 0}, command...)
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	if _, err := unix.Read(fd, answer); err != nil {
		return err
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[16:])); errno != 0 { // struct nlmsgerr
		return unix.Errno(errno)
	}
	return nil
}

// takenOver confines this process in one of the roles and tries.
func takenOver(role, socket, pid string) {
	victim, err := strconv.Atoi(pid)
	reports := -1
	if err == nil {
		reports, err = reporting()
	}
	if err == nil {
		err = roles[role]()
	}
	if err != nil {
		fmt.Println("cannot try:", err)
		os.Exit(exitFailed)
	}
	for _, g := range grabs(socket, victim, reports) {
		fmt.Printf("%s: %v\n", g.name, g.try())
	}
	os.Exit(exitOK)
}

// A worker that its sandbox has taken over keeps what it has, the uplink, and
// gets nothing else of the machine, and a reader of denials gets nothing at all: neither the processes of its own user, nor
// the sockets that are everybody's, nor a child that is not ended with it.
func TestTakenOver(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the worker's confinement takes root")
		}
		t.Skip("the worker's confinement takes root")
	}
	dir, err := os.MkdirTemp("", "taken")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for file, mode := range map[string]os.FileMode{dir: 0o755, socket: 0o666} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	victim := exec.Command("/proc/self/exe", "init")
	victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	stdin, err := victim.StdinPipe()
	if err == nil {
		err = victim.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer stdin.Close()

	for role := range roles {
		taken := exec.Command("/proc/self/exe", "taken", role, socket, strconv.Itoa(victim.Process.Pid))
		said, err := taken.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		tried := 0
		for lines := bufio.NewScanner(strings.NewReader(string(said))); lines.Scan(); tried++ {
			name, outcome, _ := strings.Cut(lines.Text(), ": ")
			switch outcome {
			case unix.EPERM.Error(), unix.EACCES.Error(), unix.EAFNOSUPPORT.Error():
			default:
				t.Errorf("%s: %s: %s", role, name, outcome)
			}
		}
		if want := len(grabs("", 0, 0)); tried != want {
			t.Errorf("%s: it tried %d things of %d:\n%s", role, tried, want, said)
		}
	}
	// Positive control: without the confinement the first few come through.
	done := make(chan struct{})
	go func() { // on a thread that ends with it
		defer close(done)
		reports, err := reporting()
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(reports)
		for _, g := range grabs(socket, victim.Process.Pid, reports)[:3] {
			if err := g.try(); err != nil {
				t.Errorf("%s: %v, though nothing confines it", g.name, err)
			}
		}
	}()
	<-done
}
