package seccomp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits
// wide; on the little-endian machines we run on the lower half comes first.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// maxInsns is BPF_MAXINSNS.
const maxInsns = 4096

// groupPrefix marks the name of a group among names of system calls.
const groupPrefix = "group:"

// Denials returns what a policy denies: the groups, less allow, plus deny and
// extra. Deny holds names of calls; allow those of calls that a group denies, or
// "group:NAME". Any other word is an error: it would not do what it says.
func Denials(deny, allow []string, extra []Denial) ([]Denial, error) {
	for _, word := range allow {
		if err := CanAllow(word); err != nil {
			return nil, err
		}
	}
	var out []Denial
	for _, g := range Groups {
		if slices.Contains(allow, groupPrefix+g.Name) {
			continue
		}
		for _, d := range g.Denials {
			if !slices.Contains(allow, d.Call) {
				out = append(out, d)
			}
		}
	}
	for _, name := range deny {
		if err := CanDeny(name); err != nil {
			return nil, err
		}
		out = append(out, Denial{Call: name, Errno: eperm, Why: "the policy denies it"})
	}
	return append(out, extra...), nil
}

// UnknownError is a word that names no system call of this architecture and no
// group. Known are the words that are possible instead.
type UnknownError struct {
	What  string
	Word  string // without group:
	Known []string
}

func (e *UnknownError) Error() string { return fmt.Sprintf("there is no %s %q", e.What, e.Word) }

// CanAllow returns why word cannot stand in a policy's seccomp.allow, or nil.
func CanAllow(word string) error {
	if name, ok := strings.CutPrefix(word, groupPrefix); ok {
		if !slices.ContainsFunc(Groups, func(g Group) bool { return g.Name == name }) {
			return &UnknownError{"group", name, groupNames()}
		}
		return nil
	}
	denied := deniedCalls()
	switch {
	case slices.Contains(denied, word): // also a call that another architecture has
		return nil
	case exists(word):
		return fmt.Errorf("cannot allow system call %q: nothing of ours denies it", word)
	}
	return &UnknownError{"system call", word, denied}
}

// CanDeny returns why word cannot stand in a policy's seccomp.deny, or nil.
func CanDeny(word string) error {
	switch {
	case strings.HasPrefix(word, groupPrefix):
		return fmt.Errorf("cannot deny %s: every group is denied already; name single calls", word)
	case slices.Contains(needed, word):
		return fmt.Errorf("cannot deny system call %q: no program starts without it", word)
	case !exists(word):
		return &UnknownError{"system call", word, slices.Sorted(maps.Keys(numbers))}
	}
	return nil
}

func exists(call string) bool {
	_, ok := numbers[call]
	return ok
}

func groupNames() []string {
	var names []string
	for _, g := range Groups {
		names = append(names, g.Name)
	}
	return names
}

// deniedCalls are the calls that groups deny, each once, in their order.
func deniedCalls() []string {
	var names []string
	for _, g := range Groups {
		for _, d := range g.Denials {
			if !slices.Contains(names, d.Call) {
				names = append(names, d.Call)
			}
		}
	}
	return names
}

// needed are calls that the launcher makes after the filter is loaded.
var needed = []string{"execve", "exit_group"}

// Compile returns the filter that answers as denials say and allows everything
// else. Calls of other architectures (32-bit, x32) are denied with EPERM. Calls
// that nobody has looked at do not exist (ENOSYS): those newer than reviewed,
// and those that a later kernel puts into a gap of the table. Denials of calls
// that the architecture does not have are left out.
func Compile(denials []Denial) ([]unix.SockFilter, error) {
	byCall := map[uint32][]Denial{}
	for _, d := range denials {
		if nr, ok := numbers[d.Call]; ok {
			byCall[nr] = append(byCall[nr], d)
		}
	}
	a := new(assembler)
	a.load(offArch)
	a.unlessEqual(auditArch, errno(eperm))
	a.load(offNr)
	if x32Bit != 0 {
		a.ifAtLeast(x32Bit, errno(eperm))
	}
	a.ifAtLeast(numbers[reviewed]+1, errno(enosys))
	for _, g := range gaps() {
		a.ifWithin(g, errno(enosys))
	}
	for _, nr := range slices.Sorted(maps.Keys(byCall)) {
		a.call(nr, byCall[nr])
	}
	a.ret(unix.SECCOMP_RET_ALLOW)
	if a.err != nil {
		return nil, a.err
	}
	if len(a.code) > maxInsns {
		return nil, fmt.Errorf("cannot compile the filter: %d instructions are more than %d", len(a.code), maxInsns)
	}
	return a.code, nil
}

// gap is a range of numbers that are no system calls, both ends included.
type gap struct{ first, last uint32 }

// gaps returns the gaps of this architecture's table, from 0 up to reviewed.
func gaps() []gap {
	var out []gap
	next := uint32(0)
	for _, nr := range slices.Sorted(maps.Values(numbers)) {
		if nr > next {
			out = append(out, gap{next, nr - 1})
		}
		next = nr + 1
	}
	return out
}

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// assembler appends instructions; blocks are built from the inside out, so
// that every jump is a length that is already known.
type assembler struct {
	code []unix.SockFilter
	err  error
}

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func (a *assembler) load(off uint32) {
	a.code = append(a.code, stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off))
}

func (a *assembler) ret(action uint32) {
	a.code = append(a.code, stmt(unix.BPF_RET|unix.BPF_K, action))
}

func (a *assembler) unlessEqual(k, action uint32) {
	a.code = append(a.code, a.jump(unix.BPF_JEQ, k, 1, 0))
	a.ret(action)
}

func (a *assembler) ifAtLeast(k, action uint32) {
	a.code = append(a.code, a.jump(unix.BPF_JGE, k, 0, 1))
	a.ret(action)
}

func (a *assembler) ifWithin(g gap, action uint32) {
	a.code = append(a.code, a.jump(unix.BPF_JGE, g.first, 0, 2), a.jump(unix.BPF_JGT, g.last, 1, 0))
	a.ret(action)
}

func (a *assembler) jump(op uint16, k uint32, yes, no int) unix.SockFilter {
	if yes > 255 || no > 255 {
		a.err = fmt.Errorf("cannot compile the filter: a jump of %d instructions is too far", max(yes, no))
	}
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

// call appends the block of one system call. The accumulator holds the number
// before it, and behind it on the way that did not enter it.
func (a *assembler) call(nr uint32, denials []Denial) {
	var body []unix.SockFilter
	always := false
	for _, d := range denials {
		if body = append(body, a.denial(d)...); len(d.If) == 0 {
			always = true // whatever follows cannot be reached
			break
		}
	}
	if !always {
		body = append(body, stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW))
	}
	a.code = append(a.code, a.jump(unix.BPF_JEQ, nr, 0, len(body)))
	a.code = append(a.code, body...)
}

// denial is: each test, falling through while it holds and jumping behind the
// block when it does not; then the answer.
func (a *assembler) denial(d Denial) []unix.SockFilter {
	block := []unix.SockFilter{stmt(unix.BPF_RET|unix.BPF_K, errno(d.Errno))}
	for _, t := range slices.Backward(d.If) {
		block = append(a.test(t, len(block)), block...)
	}
	return block
}

// test falls through if t holds and else jumps over the rest instructions that
// follow it.
func (a *assembler) test(t Test, rest int) []unix.SockFilter {
	if len(t.Values) == 0 || t.Arg < 0 || t.Arg > 5 {
		a.err = fmt.Errorf("cannot compile the filter: a test of argument %d compares with %d values", t.Arg, len(t.Values))
	}
	code := []unix.SockFilter{stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offArgs+8*uint32(t.Arg))}
	if t.Mask != 0 {
		code = append(code, stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, t.Mask))
	}
	for i, v := range t.Values {
		left := len(t.Values) - 1 - i // comparisons that follow this one
		switch {
		case t.In && left == 0:
			code = append(code, a.jump(unix.BPF_JEQ, v, 0, rest))
		case t.In:
			code = append(code, a.jump(unix.BPF_JEQ, v, left, 0))
		default:
			code = append(code, a.jump(unix.BPF_JEQ, v, left+rest, 0))
		}
	}
	return code
}

// CallName returns the name of a system call by its number on an architecture
// (AUDIT_ARCH_*, linux/audit.h), or "" if the table has none: another
// architecture, or a call newer than the table.
func CallName(arch, number uint32) string {
	if arch != auditArch {
		return ""
	}
	abi := ""
	if x32Bit != 0 && number&x32Bit != 0 {
		number, abi = number&^x32Bit, " (x32)"
	}
	if name := names()[number]; name != "" {
		return name + abi
	}
	return ""
}

// names is numbers turned round.
var names = sync.OnceValue(func() map[uint32]string {
	m := make(map[uint32]string, len(numbers))
	for name, nr := range numbers {
		m[nr] = name
	}
	return m
})
