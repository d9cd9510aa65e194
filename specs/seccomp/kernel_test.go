//go:build cgo && seccomp

package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tryCalls makes this program one that loads filters and makes calls.
const tryCalls = "try-calls"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == tryCalls {
		if err := beTried(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// trial is what the program is told: filters in the order in which they are
// loaded, and calls to make under them, of which the last may end it.
type trial struct {
	Filters [][]unix.SockFilter
	Calls   []call
	Last    *call
}

type call struct {
	Nr   uint32
	Args [6]uint64
}

// beTried loads and calls in a thread of its own; the others stay as they were,
// to tell what came of it: the errnos, as JSON.
func beTried() error {
	var tr trial
	if err := json.NewDecoder(os.Stdin).Decode(&tr); err != nil {
		return err
	}
	errnos := make([]syscall.Errno, len(tr.Calls))
	told, done := make(chan bool), make(chan error)
	go func() {
		goruntime.LockOSThread()
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		for _, filter := range tr.Filters {
			prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
			if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
				err = errors.Join(err, errno)
			}
		}
		for i, c := range tr.Calls {
			_, _, errnos[i] = make6(c)
		}
		done <- err
		<-told
		make6(*tr.Last)
		done <- errors.New("the last call did not end it")
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("cannot load the filters: %w", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(errnos); err != nil || tr.Last == nil {
		return err
	}
	told <- true
	return <-done
}

func make6(c call) (uintptr, uintptr, syscall.Errno) {
	a := c.Args
	return unix.RawSyscall6(uintptr(c.Nr), uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]), uintptr(a[4]), uintptr(a[5]))
}

// harmless are calls that change nothing, whatever their arguments.
var harmless = []string{"getpriority", "getpgid", "getsid", "sched_get_priority_max", "sched_get_priority_min", "sched_getscheduler"}

// goCalls are what a thread of a Go program cannot do without.
var goCalls = []string{"futex", "rt_sigreturn", "rt_sigprocmask", "sigaltstack", "mmap", "munmap", "madvise", "gettid", "getpid", "tgkill",
	"nanosleep", "sched_yield", "write", "epoll_pwait", "clock_gettime", "restart_syscall", "execve", "prctl"}

// The interpreter that the law is decided by answers as the kernel does: filters
// made by libcontainer and by us, errnos that no call has of itself, arguments
// at the edges of every comparison.
func TestKernelAgrees(t *testing.T) {
	answers := map[string]int{}
	for seed := range uint64(12) {
		c := &choices{data: seedBytes(1000 + seed)}
		first, err := firstFilter(t, c.harmlessProfile())
		if err != nil {
			continue // rules that contradict each other
		}
		second, err := Compile(c.harmlessDenials())
		if err != nil {
			t.Fatal(err)
		}
		filters := [][]unix.SockFilter{first, second}
		one, two := machine(t, first), machine(t, second)
		tr := trial{Filters: filters}
		var want []uint32
		for _, q := range c.harmlessQuestions() {
			ret := stricter(two.answer(t, q), one.answer(t, q))
			if passing(ret) || isErrno(ret) {
				tr.Calls, want = append(tr.Calls, call{q.nr, q.args}), append(want, ret)
			} else if ret&actionFull == unix.SECCOMP_RET_KILL_PROCESS {
				tr.Last = &call{q.nr, q.args}
			}
		}
		errnos := tryThem(t, tr)
		for i, errno := range errnos {
			answers[say(want[i])]++
			if isErrno(want[i]) && uint32(errno) != want[i]&0xffff || passing(want[i]) && errno >= ownErrnos {
				t.Errorf("%+v: the kernel says errno %d, the interpreter %s\n%s", tr.Calls[i], errno, say(want[i]), c)
			}
		}
		if tr.Last != nil {
			answers["killed"]++
		}
	}
	if len(answers) < 6 || answers["allow"] == 0 || answers["killed"] == 0 {
		t.Errorf("the sample is poor: %v", answers)
	}
}

// A call of the x32 ABI is told EPERM by our filters; libseccomp's ends the thread
// that makes it, which the kernel finds stricter.
func TestForeignCall(t *testing.T) {
	if x32Bit == 0 {
		t.Skip("this architecture has no second ABI that Go could call")
	}
	second := compiled(t, nil, nil)
	standIn, err := CompileDefault(&oci.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	getpid := call{Nr: x32Bit | numbers["getpid"]}
	for _, filters := range [][][]unix.SockFilter{{second}, {standIn, second}} {
		if errnos := tryThem(t, trial{Filters: filters, Calls: []call{getpid}}); errnos[0] != unix.EPERM {
			t.Errorf("an x32 call is told %v by %d filters, want EPERM", errnos[0], len(filters))
		}
	}
	profile, err := Default(&oci.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	admitted, _, err := Admit(profile)
	if err != nil {
		t.Fatal(err)
	}
	first, err := firstFilter(t, admitted)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []question{{arch: auditArch, nr: getpid.Nr}, {arch: unix.AUDIT_ARCH_I386, nr: 102}} {
		if got := stricter(machine(t, second).answer(t, q), machine(t, first).answer(t, q)); got != unix.SECCOMP_RET_KILL_THREAD {
			t.Errorf("%v: %s, want the thread's end", q, say(got))
		}
	}
}

// What the engine's profile costs to compile, for this architecture alone, as we
// do it, and for all that Docker names: libseccomp does it anew for each start.
func BenchmarkFirstFilter(b *testing.B) {
	profile, err := Default(&oci.Spec{})
	if err != nil {
		b.Fatal(err)
	}
	for name, archs := range map[string][]oci.Arch{"native": {nativeArch}, "three": {oci.ArchX86_64, oci.ArchX86, oci.ArchX32}} {
		if x32Bit == 0 && len(archs) > 1 {
			continue
		}
		p := *profile
		p.Architectures = archs
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := firstFilter(b, &p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What filters cost a call that both always allow, one of which the second looks
// at one argument, and one of which it looks at three; each fails at once in the
// kernel. make bench measures the same inside containers.
func BenchmarkCalls(b *testing.B) {
	profile, err := Default(&oci.Spec{})
	if err != nil {
		b.Fatal(err)
	}
	admitted, _, err := Admit(profile)
	if err != nil {
		b.Fatal(err)
	}
	first, err := firstFilter(b, admitted)
	if err != nil {
		b.Fatal(err)
	}
	denials, err := Denials(nil, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	second, err := Compile(denials)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		call call
	}{
		{"getppid", call{Nr: numbers["getppid"]}},
		{"ioctl", call{numbers["ioctl"], [6]uint64{1<<32 - 1, unix.TIOCGPGRP}}},
		{"socket", call{numbers["socket"], [6]uint64{unix.AF_UNIX, 11}}},
	} {
		for _, under := range []struct {
			name    string
			filters [][]unix.SockFilter
		}{{"none", nil}, {"profile", [][]unix.SockFilter{first}}, {"both", [][]unix.SockFilter{first, second}}} {
			b.Run(c.name+"/"+under.name, func(b *testing.B) {
				goruntime.LockOSThread() // for good: it ends with the goroutine
				if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
					b.Fatal(err)
				}
				for _, filter := range under.filters {
					prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
					if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
						b.Fatal(errno)
					}
				}
				for b.Loop() {
					make6(c.call)
				}
			})
		}
	}
}

// tryThem runs the trial and returns the errnos, and whether the last call ended
// the program as it should.
func tryThem(t *testing.T, tr trial) []syscall.Errno {
	t.Helper()
	in, err := json.Marshal(tr)
	if err != nil {
		t.Fatal(err)
	}
	var out, says bytes.Buffer
	cmd := exec.Command("/proc/self/exe", tryCalls)
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &says
	err = cmd.Run()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ended := status.Signaled() && status.Signal() == unix.SIGSYS; ended != (tr.Last != nil) || tr.Last == nil && err != nil {
		t.Fatalf("the program ended with %v, last call %+v: %s", err, tr.Last, says.Bytes())
	}
	var errnos []syscall.Errno
	if err := json.Unmarshal(out.Bytes(), &errnos); err != nil || len(errnos) != len(tr.Calls) {
		t.Fatalf("%d answers to %d calls, %v: %s", len(errnos), len(tr.Calls), err, says.Bytes())
	}
	return errnos
}

// ownErrnos and beyond are no errnos of the kernel's.
const ownErrnos = 300

func (c *choices) harmlessProfile() *oci.LinuxSeccomp {
	p := &oci.LinuxSeccomp{DefaultAction: choose(c, []oci.LinuxSeccompAction{oci.ActAllow, oci.ActErrno}), Architectures: []oci.Arch{nativeArch}}
	enough := uint(ownErrnos)
	p.DefaultErrnoRet = &enough
	p.Syscalls = []oci.LinuxSyscall{{Names: goCalls, Action: oci.ActAllow}, {Names: []string{"seccomp"}, Action: oci.ActAllow}}
	for i := range 1 + c.below(8) {
		e := uint(ownErrnos + 1 + i)
		rule := oci.LinuxSyscall{Names: []string{choose(c, harmless)}, ErrnoRet: &e,
			Action: choose(c, []oci.LinuxSeccompAction{oci.ActErrno, oci.ActErrno, oci.ActAllow, oci.ActKillProcess})}
		for range 1 + c.below(3) {
			rule.Args = append(rule.Args, oci.LinuxSeccompArg{Index: uint(c.below(6)), Value: choose(c, edges), ValueTwo: choose(c, edges),
				Op: choose(c, []oci.LinuxSeccompOperator{oci.OpEqualTo, oci.OpNotEqual, oci.OpLessThan, oci.OpLessEqual, oci.OpGreaterEqual, oci.OpGreaterThan, oci.OpMaskedEqual})})
		}
		p.Syscalls = append(p.Syscalls, rule)
	}
	return p
}

func (c *choices) harmlessDenials() []Denial {
	var denials []Denial
	for i := range c.below(8) {
		d := Denial{Call: choose(c, harmless), Errno: unix.Errno(ownErrnos + 50 + i)}
		for range 1 + c.below(2) {
			test := Test{Arg: c.below(6), In: c.below(2) == 0, Values: []uint32{uint32(choose(c, edges)), uint32(choose(c, edges))}}
			if c.below(2) == 0 {
				test.Mask = uint32(choose(c, edges)) | 1
			}
			d.If = append(d.If, test)
		}
		denials = append(denials, d)
	}
	return denials
}

func (c *choices) harmlessQuestions() []question {
	var out []question
	for _, name := range harmless {
		for range 40 {
			q := question{arch: auditArch, nr: numbers[name]}
			for i := range q.args {
				q.args[i] = choose(c, slices.Concat(edges, []uint64{0, 0, 0}))
				if len(c.data) == 0 {
					q.args[i] = edges[(len(out)*7+i*5)%len(edges)]
				}
			}
			out = append(out, q)
		}
	}
	for _, nr := range []uint32{400, 2000, 1<<30 - 1} { // no calls
		out = append(out, question{arch: auditArch, nr: nr})
	}
	return out
}
