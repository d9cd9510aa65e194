//go:build cgo && seccomp

package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"sync"
	"testing"
	"unsafe"

	runcseccomp "github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// firstFilter returns the program that libcontainer makes of profile: the real
// one, caught on its way into the kernel. The thread that loads it is under a
// filter that hands its loading of filters to us (seccomp_unotify(2)); we keep a
// copy and say that it was loaded.
func firstFilter(t testing.TB, profile *oci.LinuxSeccomp) ([]unix.SockFilter, error) {
	t.Helper()
	o, err := theOven()
	if errors.Is(err, unix.EBUSY) { // this process has a listener: it is being watched itself
		t.Skip("cannot catch filters: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.profiles <- profile
	got := <-o.filters
	return got.filter, got.err
}

// oven is a thread that loads what it is given, and what came of it.
//
//	[ test ]  profile --> [ thread ]  InitSeccomp: prctl or seccomp
//	                           |              [ watcher ]  copies the program, answers "done"
//	          filter  <--------+<-------------------+
type oven struct {
	mu       sync.Mutex
	profiles chan *oci.LinuxSeccomp
	filters  chan baked
	caught   []unix.SockFilter // by the watcher, while the thread waits in the kernel
}

type baked struct {
	filter []unix.SockFilter
	err    error
}

var theOven = sync.OnceValues(func() (*oven, error) {
	o := &oven{profiles: make(chan *oci.LinuxSeccomp), filters: make(chan baked)}
	ready := make(chan error)
	go o.thread(ready)
	return o, <-ready
})

func (o *oven) thread(ready chan<- error) {
	goruntime.LockOSThread() // for good: the filter stays
	listener, err := watchLoading()
	if err == nil {
		go o.watch(listener)
	}
	ready <- err
	for profile := range o.profiles {
		o.caught = nil
		// Without flags libcontainer loads by prctl, which it makes known to Go's
		// scheduler; seccomp(2) it does not, and a garbage collection in the middle
		// would wait for this thread, and this thread for the watcher.
		p := *profile
		p.Flags = []oci.LinuxSeccompFlag{}
		config, err := specconv.SetupSeccomp(&p)
		if err == nil {
			_, err = runcseccomp.InitSeccomp(config)
		}
		o.filters <- baked{o.caught, err}
	}
}

// watchLoading puts this thread under a filter that asks about prctl and
// seccomp, and returns the descriptor that it asks on.
func watchLoading() (int, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	program := []unix.SockFilter{
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offNr),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_PRCTL},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_SECCOMP},
		stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF),
		stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW),
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	goruntime.KeepAlive(program)
	if errno != 0 {
		return -1, fmt.Errorf("cannot watch a thread: %w", errno)
	}
	return int(fd), nil
}

// asked and answered are struct seccomp_notif and seccomp_notif_resp
// (linux/seccomp.h).
type asked struct {
	ID         uint64
	PID, Flags uint32
	Nr         int32
	Arch       uint32
	IP         uint64
	Args       [6]uint64
}

type answered struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

func (o *oven) watch(listener int) {
	mem, err := os.Open("/proc/self/mem")
	for err == nil {
		var q asked
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&q))); errno != 0 {
			if errno == unix.EINTR || errno == unix.ENOENT { // a signal took the question back
				continue
			}
			err = errno
			break
		}
		a := answered{ID: q.ID}
		switch {
		case q.Nr == unix.SYS_PRCTL && q.Args[0] != unix.PR_SET_SECCOMP, q.Nr == unix.SYS_SECCOMP && q.Args[0] != unix.SECCOMP_SET_MODE_FILTER:
			a.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		case q.Args[2] == 0: // libseccomp asks which flags there are
			a.Error = -int32(unix.EFAULT)
		default:
			if o.caught, err = readProgram(mem, int64(q.Args[2])); err != nil {
				a.Error = -int32(unix.EFAULT)
			}
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a))); errno != 0 && errno != unix.ENOENT {
			err = errno
		}
	}
	panic(fmt.Sprintf("the watcher of filters is blind: %v", err)) // the thread would wait for ever
}

// readProgram reads the struct sock_fprog at addr and what it points to.
func readProgram(mem *os.File, addr int64) ([]unix.SockFilter, error) {
	var head [16]byte
	if _, err := mem.ReadAt(head[:], addr); err != nil {
		return nil, err
	}
	b := make([]byte, 8*int(binary.NativeEndian.Uint16(head[:])))
	if _, err := mem.ReadAt(b, int64(binary.NativeEndian.Uint64(head[8:]))); err != nil {
		return nil, err
	}
	var program []unix.SockFilter
	for ; len(b) > 0; b = b[8:] {
		program = append(program, unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	return program, nil
}
