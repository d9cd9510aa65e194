package seccomp

import (
	"fmt"
	"maps"
	"math"
	"slices"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CompileDefault returns the first filter of a container whose engine gave no
// profile: Docker's (Default), for the capabilities that spec has. It answers as
// the program that libcontainer would make of it, but for calls that the host's
// libseccomp is too old to know by name, which are as the profile says, and for
// those of other architectures: told EPERM, as by the second filter.
func CompileDefault(spec *oci.Spec) ([]unix.SockFilter, error) {
	profile, err := Default(spec)
	if err != nil {
		return nil, err
	}
	return compileProfile(profile)
}

// compileProfile compiles what Docker's profile is made of: rules that allow or
// deny with an errno, whole calls or by values of different arguments. Of anything
// else it would have to guess, and refuses.
func compileProfile(profile *oci.LinuxSeccomp) ([]unix.SockFilter, error) {
	c := &profileCompiler{assembler: new(assembler)}
	if c.other = c.action(profile.DefaultAction, profile.DefaultErrnoRet); c.other == unix.SECCOMP_RET_ALLOW {
		return nil, fmt.Errorf("cannot compile the profile: it allows what it does not name")
	}
	c.load(offArch)
	c.unlessEqual(auditArch, errno(eperm))
	c.load(offNr)
	if x32Bit != 0 {
		c.ifAtLeast(x32Bit, errno(eperm))
	}
	c.code = append(c.code, c.search(c.runs(profile))...)
	if c.err != nil {
		return nil, c.err
	}
	if len(c.code) > maxInsns {
		return nil, fmt.Errorf("cannot compile the profile: %d instructions are more than %d", len(c.code), maxInsns)
	}
	return c.code, nil
}

type profileCompiler struct {
	*assembler
	other uint32 // the answer to what the profile does not name
}

func (c *profileCompiler) fault(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("cannot compile the profile: "+format, args...)
	}
}

// action is a rule's answer as a filter returns it.
func (c *profileCompiler) action(action oci.LinuxSeccompAction, errnoRet *uint) uint32 {
	switch {
	case action == oci.ActAllow:
		return unix.SECCOMP_RET_ALLOW
	case action != oci.ActErrno:
		c.fault("it answers %s", action)
	case errnoRet == nil:
		return errno(eperm) // runc's default, as the runtime specification has it
	case *errnoRet > math.MaxUint16:
		c.fault("it answers errno %d", *errnoRet)
	default:
		return errno(unix.Errno(*errnoRet))
	}
	return errno(eperm)
}

// run is the calls from first up to the next run, and the block that answers all
// of them, ending in a return on every way.
type run struct {
	first uint32
	block []unix.SockFilter
}

// runs divides all numbers. Beyond the newest call that the profile names
// libcontainer answers ENOSYS (horizon).
func (c *profileCompiler) runs(profile *oci.LinuxSeccomp) []run {
	rules := map[uint32][]oci.LinuxSyscall{}
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			if nr, ok := numbers[name]; ok { // others are another architecture's
				rules[nr] = append(rules[nr], rule)
			}
		}
	}
	if len(rules) == 0 {
		c.fault("it names no system call")
		return nil
	}
	var runs []run
	add := func(first uint32, block []unix.SockFilter) {
		if len(runs) == 0 || !slices.Equal(runs[len(runs)-1].block, block) {
			runs = append(runs, run{first, block})
		}
	}
	next := uint32(0)
	for _, nr := range slices.Sorted(maps.Keys(rules)) {
		if nr > next {
			add(next, returning(c.other))
		}
		add(nr, c.block(nr, rules[nr]))
		next = nr + 1
	}
	add(next, returning(errno(enosys)))
	return runs
}

func returning(action uint32) []unix.SockFilter {
	return []unix.SockFilter{stmt(unix.BPF_RET|unix.BPF_K, action)}
}

// search finds the run of the number in the accumulator by halves.
func (c *profileCompiler) search(runs []run) []unix.SockFilter {
	switch len(runs) {
	case 0:
		return nil
	case 1:
		return runs[0].block
	}
	middle := len(runs) / 2
	below, above := c.search(runs[:middle]), c.search(runs[middle:])
	return slices.Concat([]unix.SockFilter{c.jump(unix.BPF_JGE, runs[middle].first, len(below), 0)}, below, above)
}

// block answers one call: a rule that fits says what its action is. Rules that
// say what is said to everything else, libcontainer leaves out.
func (c *profileCompiler) block(nr uint32, rules []oci.LinuxSyscall) []unix.SockFilter {
	var some []unix.SockFilter
	said, always := c.other, false
	for _, rule := range rules {
		action := c.action(rule.Action, rule.ErrnoRet)
		if action == c.other {
			continue
		}
		if said != c.other && said != action {
			c.fault("its rules for system call %d contradict each other", nr)
		}
		said = action
		always = always || len(rule.Args) == 0
		some = append(some, c.rule(nr, rule, action)...)
	}
	if always || said == c.other { // whatever the others ask, they say the same
		return returning(said)
	}
	return append(some, returning(c.other)...)
}

// rule returns action if all that it asks of the arguments holds, and else jumps
// behind itself.
func (c *profileCompiler) rule(nr uint32, rule oci.LinuxSyscall, action uint32) []unix.SockFilter {
	block := returning(action)
	looked := map[uint]bool{}
	for _, arg := range slices.Backward(rule.Args) {
		if arg.Index > 5 || looked[arg.Index] { // the same twice means either of them
			c.fault("a rule for system call %d asks in a way of its own for argument %d", nr, arg.Index)
			return nil
		}
		looked[arg.Index] = true
		block = append(c.compare(arg, len(block)), block...)
	}
	return block
}

// compare falls through if arg holds and else jumps over the rest instructions
// that follow it. All 64 bits are compared, as libseccomp does: the upper half
// first, which decides unless it is equal.
func (c *profileCompiler) compare(arg oci.LinuxSeccompArg, rest int) []unix.SockFilter {
	at := offArgs + 8*uint32(arg.Index)
	low, high := stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, at), stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, at+4)
	lower, upper := halves(arg.Value)
	switch arg.Op {
	case oci.OpEqualTo:
		return []unix.SockFilter{high, c.jump(unix.BPF_JEQ, upper, 0, rest+2), low, c.jump(unix.BPF_JEQ, lower, 0, rest)}
	case oci.OpMaskedEqual:
		if arg.ValueTwo&^arg.Value != 0 { // read as written it never holds; libseccomp reads it otherwise
			c.fault("it compares bits with %#x that %#x masks out", arg.ValueTwo, arg.Value)
		}
		lowerIs, upperIs := halves(arg.ValueTwo)
		mask := func(k uint32) unix.SockFilter { return stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, k) }
		return []unix.SockFilter{high, mask(upper), c.jump(unix.BPF_JEQ, upperIs, 0, rest+3), low, mask(lower), c.jump(unix.BPF_JEQ, lowerIs, 0, rest)}
	case oci.OpLessThan:
		return []unix.SockFilter{high, c.jump(unix.BPF_JGT, upper, rest+3, 0), c.jump(unix.BPF_JEQ, upper, 0, 2),
			low, c.jump(unix.BPF_JGE, lower, rest, 0)}
	case oci.OpGreaterThan:
		return []unix.SockFilter{high, c.jump(unix.BPF_JGT, upper, 3, 0), c.jump(unix.BPF_JEQ, upper, 0, rest+2),
			low, c.jump(unix.BPF_JGT, lower, 0, rest)}
	}
	c.fault("it compares by %s", arg.Op)
	return nil
}

func halves(v uint64) (lower, upper uint32) { return uint32(v), uint32(v >> 32) }
