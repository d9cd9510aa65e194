package seccomp

import (
	"fmt"
	"maps"
	"slices"

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

// Denials returns what a policy denies: the groups, less allow, plus deny and
// extra. A name that is in no table of system calls, or an allow of something
// that is not denied, is an error: it would not do what it says.
func Denials(deny, allow []string, extra []Denial) ([]Denial, error) {
	var out []Denial
	known := map[string]bool{}
	for _, g := range Groups {
		for _, d := range g.Denials {
			known[d.Call] = true
			if !slices.Contains(allow, d.Call) {
				out = append(out, d)
			}
		}
	}
	for _, name := range allow {
		if !known[name] {
			return nil, fmt.Errorf("cannot allow system call %q: nothing of ours denies it", name)
		}
	}
	for _, name := range deny {
		if _, ok := numbers[name]; !ok {
			return nil, fmt.Errorf("cannot deny system call %q: there is no such call on this architecture", name)
		}
		if slices.Contains(needed, name) {
			return nil, fmt.Errorf("cannot deny system call %q: no program starts without it", name)
		}
		out = append(out, Denial{Call: name, Errno: eperm})
	}
	return append(out, extra...), nil
}

// needed are calls that the launcher makes after the filter is loaded.
var needed = []string{"execve", "exit_group"}

// Compile returns the filter that answers as denials say and allows everything
// else. Calls of other architectures (32-bit, x32) are denied with EPERM, calls
// newer than this table do not exist (ENOSYS). Denials of calls that the
// architecture does not have are left out.
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
	a.ifAtLeast(slices.Max(slices.Collect(maps.Values(numbers)))+1, errno(enosys))
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
