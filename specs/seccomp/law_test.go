//go:build cgo && seccomp

package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// FuzzTwoFilters: whatever the engine's profile and the policy say, the two
// filters together allow what both allow and nothing else (law 2), and where the
// profile says no with an errno, the program is told that errno. Decided by
// running the programs: the one that libcontainer makes of the profile alone,
// and the two that a sandbox gets.
func FuzzTwoFilters(f *testing.F) {
	for seed := range uint64(1000) {
		f.Add(seedBytes(seed))
	}
	tried, decided := 0, 0
	f.Fuzz(func(t *testing.T, data []byte) {
		tried++
		c := &choices{data: data}
		profile := c.profile()
		deny, allow := c.policy()
		admitted, again, err := Admit(profile)
		if err != nil {
			return // refused: nothing runs
		}
		denials, err := Denials(deny, allow, again)
		if err != nil {
			t.Fatal(err)
		}
		alone, err := firstFilter(t, profile)
		if err != nil {
			return // the engine's own runtime would not start it either
		}
		first, err := firstFilter(t, admitted)
		if err != nil {
			return // refused later, by libseccomp; nothing runs
		}
		second, err := Compile(denials)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := Denials(deny, allow, nil)
		if err != nil {
			t.Fatal(err)
		}
		policy, err := Compile(ours)
		if err != nil {
			t.Fatal(err)
		}
		engine, we, one, two := machine(t, alone), machine(t, policy), machine(t, first), machine(t, second)
		if !passing(engine.answer(t, question{arch: auditArch, nr: numbers["execve"]})) {
			return // no program runs under such a profile
		}
		decided++
		for _, q := range c.questions(profile) {
			want := stricter(we.answer(t, q), engine.answer(t, q))
			got := stricter(two.answer(t, q), one.answer(t, q))
			switch {
			case passing(got) && !passing(want):
				t.Fatalf("%v: %s; the profile and the policy together say %s\n%s", q, say(got), say(want), c)
			case q.native() && passing(want) && !passing(got) && !c.ambiguous(profile, q.nr):
				t.Fatalf("%v: %s; the profile and the policy together say %s\n%s", q, say(got), say(want), c)
			case q.native() && isErrno(want) && got != want && !c.ambiguous(profile, q.nr) && !unheardOf(q.nr):
				t.Fatalf("%v: %s, want %s\n%s", q, say(got), say(want), c)
			case !q.native() && passing(got):
				t.Fatalf("%v: a foreign call: %s\n%s", q, say(got), c)
			}
		}
	})
	if decided < tried/3 {
		f.Errorf("only %d of %d profiles came to a decision", decided, tried)
	}
}

// FuzzCompile: the filter answers as the denials read: the first that fits, of
// those of the call; and allows everything else.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seedBytes(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &choices{data: data}
		var denials []Denial
		for range c.below(20) {
			denials = append(denials, c.denial())
		}
		filter, err := Compile(denials)
		if err != nil {
			t.Fatalf("%v: %v", err, denials)
		}
		if len(filter) > maxInsns {
			t.Fatalf("%d instructions", len(filter))
		}
		m := machine(t, filter)
		for _, name := range callPool {
			nr, ok := numbers[name]
			if !ok {
				continue
			}
			for range 8 {
				q := question{arch: auditArch, nr: nr}
				for i := range q.args {
					q.args[i] = choose(c, edges)
				}
				if got, want := m.answer(t, q), meant(denials, name, q.args); got != want {
					t.Fatalf("%v: %s, want %s by %v", q, say(got), say(want), denials)
				}
			}
		}
		again, err := Compile(denials)
		if err != nil || !slices.Equal(again, filter) {
			t.Fatalf("compiled again it is another filter, %v", err)
		}
	})
}

// denial is any one that Compile takes.
func (c *choices) denial() Denial {
	d := Denial{Call: choose(c, callPool), Errno: choose(c, []unix.Errno{unix.EPERM, unix.ENOSYS, 300})}
	for range c.below(4) {
		test := Test{Arg: c.below(6), In: c.below(2) == 0, Mask: uint32(choose(c, edges))}
		for range 1 + c.below(6) {
			test.Values = append(test.Values, uint32(choose(c, edges)))
		}
		d.If = append(d.If, test)
	}
	return d
}

// meant is what denials say of a call, read as their documentation reads.
func meant(denials []Denial, call string, args [6]uint64) uint32 {
	for _, d := range denials {
		if d.Call == call && !slices.ContainsFunc(d.If, func(test Test) bool {
			v := uint32(args[test.Arg])
			if test.Mask != 0 {
				v &= test.Mask
			}
			return slices.Contains(test.Values, v) != test.In
		}) {
			return errno(d.Errno)
		}
	}
	return unix.SECCOMP_RET_ALLOW
}

// unheardOf reports whether nr is no call that libseccomp 2.5 knows by name, so
// that it cannot be told to answer ENOSYS: numbers in gaps of the table, and the
// calls that the kernel puts into programs that the host probes, which pass by
// filters.
func unheardOf(nr uint32) bool {
	for name, n := range numbers {
		if n == nr {
			return name == "uretprobe" || name == "uprobe"
		}
	}
	return true
}

// question is one system call as a filter sees it.
type question struct {
	arch, nr uint32
	args     [6]uint64
}

func (q question) native() bool { return q.arch == auditArch && q.nr < 1<<30 }

func (q question) String() string {
	for name, nr := range numbers {
		if nr == q.nr && q.arch == auditArch {
			return fmt.Sprintf("%s%#x", name, q.args)
		}
	}
	return fmt.Sprintf("arch %#x number %#x %#x", q.arch, q.nr, q.args)
}

// interpreter runs a filter as the kernel would.
type interpreter struct{ vm *bpf.VM }

func machine(t testing.TB, filter []unix.SockFilter) interpreter {
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
	return interpreter{vm}
}

// answer returns the action and its data, SECCOMP_RET_*. The interpreter of
// golang.org/x/net/bpf loads words big-endian, so seccomp_data is given to it so,
// word by word.
func (m interpreter) answer(t testing.TB, q question) uint32 {
	t.Helper()
	var data [64]byte
	binary.BigEndian.PutUint32(data[offNr:], q.nr)
	binary.BigEndian.PutUint32(data[offArch:], q.arch)
	for i, a := range q.args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a)) // the lower half comes first
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32))
	}
	ret, err := m.vm.Run(data[:])
	if err != nil {
		t.Fatal(err)
	}
	return uint32(ret)
}

const actionFull = 0xffff0000 // SECCOMP_RET_ACTION_FULL

// stricter returns which of two answers the kernel takes: the lower action as a
// signed number, and of equal ones that of the filter that was loaded later
// (seccomp_run_filters in kernel/seccomp.c).
func stricter(later, earlier uint32) uint32 {
	if int32(earlier&actionFull) < int32(later&actionFull) {
		return earlier
	}
	return later
}

func passing(ret uint32) bool {
	action := ret & actionFull
	return action == unix.SECCOMP_RET_ALLOW || action == unix.SECCOMP_RET_LOG
}

func isErrno(ret uint32) bool { return ret&actionFull == unix.SECCOMP_RET_ERRNO }

func say(ret uint32) string {
	switch ret & actionFull {
	case unix.SECCOMP_RET_ALLOW:
		return "allow"
	case unix.SECCOMP_RET_ERRNO:
		return fmt.Sprintf("errno %d", ret&0xffff)
	}
	return fmt.Sprintf("%#x", ret)
}

// choices turns bytes into profiles and policies, the same bytes into the same
// ones. Out of bytes, it takes the first of everything.
type choices struct {
	data   []byte
	chosen []string // for a fault's text
}

func seedBytes(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 64+r.IntN(400))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (c *choices) String() string {
	s := "chosen:"
	for _, line := range c.chosen {
		s += "\n  " + line
	}
	return s
}

// ambiguous reports whether several rules of profile name a call of the
// launcher's: libseccomp heeds the first of them, Admit the strictest.
func (c *choices) ambiguous(profile *oci.LinuxSeccomp, nr uint32) bool {
	rules := 0
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			if slices.Contains(launcherCalls, name) && numbers[name] == nr {
				rules++
			}
		}
	}
	return rules > 1
}

func (c *choices) note(format string, args ...any) {
	c.chosen = append(c.chosen, fmt.Sprintf(format, args...))
}

// below returns a number below n, which is at most 256.
func (c *choices) below(n int) int {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return int(b) % n
}

func choose[T any](c *choices, list []T) T { return list[c.below(len(list))] }

// callPool are calls that somebody decides about, and plain ones of every age, as
// far as libseccomp 2.5 knows them: of others it sees no rules.
var callPool = slices.Concat(launcherCalls, []string{"execve", "socket", "ioctl", "clone", "clone3", "personality", "execveat", "prlimit64", "socketpair",
	"read", "getpriority", "faccessat2", "openat2", "statx", "rseq", "process_mrelease", "ptrace", "keyctl", "mount",
	"landlock_create_ruleset", "pidfd_open", "io_uring_setup", "unshare", "kcmp", "nosuchcall"})

// edges are values of arguments at which comparisons turn.
var edges = []uint64{0, 1, 2, 3, 6, 7, 8, 17, 38, 39, 40, 0xf, 0x10, 0x1000, 0x5412, 0x7e020000, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 2, 1<<63 - 1, 1 << 63, 1<<64 - 1}

func (c *choices) profile() *oci.LinuxSeccomp {
	actions := []oci.LinuxSeccompAction{oci.ActAllow, oci.ActErrno, oci.ActErrno, oci.ActLog, oci.ActKillProcess, oci.ActKillThread, oci.ActTrap, oci.ActTrace, oci.ActKill}
	p := &oci.LinuxSeccomp{DefaultAction: choose(c, actions)}
	if p.DefaultAction == oci.ActErrno {
		p.DefaultErrnoRet = c.errno()
	}
	p.Architectures = choose(c, [][]oci.Arch{nil, {nativeArch}, {oci.ArchX86_64, oci.ArchX86, oci.ArchX32}, {oci.ArchX86_64, oci.ArchX32}, {nativeArch}})
	if x32Bit == 0 {
		p.Architectures = nil
	}
	if c.below(8) > 0 { // what every program needs, and most of what the launcher does
		p.Syscalls = append(p.Syscalls, oci.LinuxSyscall{Names: append(slices.Clone(launcherCalls[c.below(4):]), "execve", "read"), Action: oci.ActAllow})
	}
	for range c.below(12) {
		rule := oci.LinuxSyscall{Action: choose(c, actions)}
		if rule.Action == oci.ActErrno {
			rule.ErrnoRet = c.errno()
		}
		pool := callPool[len(launcherCalls)+1:]
		if c.below(8) == 0 {
			pool = callPool
		}
		for range 1 + c.below(4) {
			rule.Names = append(rule.Names, choose(c, pool))
		}
		for range max(0, c.below(5)-1) {
			rule.Args = append(rule.Args, oci.LinuxSeccompArg{Index: uint(c.below(6)), Value: choose(c, edges), ValueTwo: choose(c, edges),
				Op: choose(c, []oci.LinuxSeccompOperator{oci.OpEqualTo, oci.OpNotEqual, oci.OpLessThan, oci.OpLessEqual, oci.OpGreaterEqual, oci.OpGreaterThan, oci.OpMaskedEqual})})
		}
		p.Syscalls = append(p.Syscalls, rule)
	}
	c.note("default %s %v", p.DefaultAction, p.Architectures)
	for _, r := range p.Syscalls {
		c.note("%s %v %v", r.Action, r.Names, r.Args)
	}
	return p
}

func (c *choices) errno() *uint {
	if c.below(2) == 0 {
		return nil
	}
	e := uint(choose(c, []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EACCES, unix.ENOENT, 300}))
	return &e
}

func (c *choices) policy() (deny, allow []string) {
	denied := deniedCalls()
	for range c.below(4) {
		if name := choose(c, callPool); CanDeny(name) == nil {
			deny = append(deny, name)
		}
	}
	for range c.below(4) {
		if c.below(2) == 0 {
			allow = append(allow, groupPrefix+choose(c, groupNames()))
		} else {
			allow = append(allow, choose(c, denied))
		}
	}
	c.note("policy: deny %v, allow %v", deny, allow)
	return deny, allow
}

// questions are the calls to try: those that somebody decides about, with
// arguments at and beside what they are compared to, and foreign and unknown ones.
func (c *choices) questions(profile *oci.LinuxSeccomp) []question {
	values := map[string][]uint64{}
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			for _, a := range rule.Args {
				values[name] = append(values[name], a.Value, a.Value-1, a.Value+1, a.ValueTwo, a.ValueTwo|^a.Value, a.Value^1<<32)
			}
		}
	}
	var out []question
	add := func(arch, nr uint32, vs []uint64) {
		out = append(out, question{arch: arch, nr: nr})
		for range 4 {
			q := question{arch: arch, nr: nr}
			for i := range q.args {
				q.args[i] = choose(c, vs)
			}
			out = append(out, q)
		}
		for _, v := range vs {
			out = append(out, question{arch, nr, [6]uint64{v, v, v, v, v, v}})
		}
	}
	for _, name := range callPool {
		if nr, ok := numbers[name]; ok {
			add(auditArch, nr, append(values[name], edges[c.below(len(edges))]))
		}
	}
	for _, nr := range numbers {
		out = append(out, question{arch: auditArch, nr: nr})
	}
	for _, nr := range []uint32{337, 423, 472, 511, 512, 547, 1000, 1<<30 - 1, 1 << 30, 1<<30 | 39, 1<<30 | 512, 1<<31 - 1, 1<<32 - 1} {
		add(auditArch, nr, edges[:2])
	}
	for _, nr := range []uint32{0, 3, 5, 11, 20, 102, 120, 359, 446} {
		add(unix.AUDIT_ARCH_I386, nr, edges[:2])
	}
	return out
}
