//go:build cgo && seccomp

package seccomp

import (
	"slices"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// capabilitySets are what containers have, and every capability that Docker's
// profile looks at.
var capabilitySets = map[string][]string{
	"none":        nil,
	"the ceiling": {"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"},
	"SYS_ADMIN":   {"CAP_SYS_ADMIN"},
	"SYS_CHROOT":  {"CAP_SYS_CHROOT"},
	"all": {"CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON"},
}

func specWith(capabilities []string) *oci.Spec {
	return &oci.Spec{Process: &oci.Process{Capabilities: &oci.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities}}}
}

// The filter that stands in where the engine gave no profile answers, alone and
// below ours, as what libcontainer makes of Docker's: every number, with
// arguments at the edges of every comparison.
func TestStandIn(t *testing.T) {
	second := machine(t, compiled(t, nil, nil))
	for name, capabilities := range capabilitySets {
		t.Run(name, func(t *testing.T) {
			spec := specWith(capabilities)
			profile, err := Default(spec)
			if err != nil {
				t.Fatal(err)
			}
			admitted, again, err := Admit(profile)
			if err != nil || len(again) > 0 {
				t.Fatalf("denied again %v, %v; want neither", again, err)
			}
			theirs, err := firstFilter(t, admitted)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := CompileDefault(spec)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d instructions, libseccomp's %d", len(ours), len(theirs))
			agree(t, profile, machine(t, theirs), machine(t, ours), second)
		})
	}
}

// agree asks both filters everything, alone and with second above them.
func agree(t *testing.T, profile *oci.LinuxSeccomp, theirs, ours, second interpreter) {
	t.Helper()
	c := &choices{data: seedBytes(1)}
	faults, unknown, asked := 0, map[uint32]bool{}, 0
	for _, q := range allQuestions(c, profile) {
		asked++
		want, got := theirs.answer(t, q), ours.answer(t, q)
		if !q.native() {
			want = errno(eperm) // libseccomp's ends the thread
		} else if got != want && unknownToLibseccomp(q.nr) {
			unknown[q.nr] = true
			want = asWritten(t, profile, q.nr)
		}
		both := stricter(second.answer(t, q), got)
		if passing(both) && !passing(want) || got != want || both != stricter(second.answer(t, q), want) {
			if faults++; faults <= 10 {
				t.Errorf("%v: %s, and with the second filter %s, want %s", q, say(got), say(both), say(want))
			}
		}
	}
	for nr := range unknown {
		t.Logf("libseccomp here does not know %s", CallName(auditArch, nr))
	}
	if asked < 5000 || faults > 10 {
		t.Errorf("%d questions, %d faults", asked, faults)
	}
}

// allQuestions are every number up to 1000 and the edges of the rest, foreign
// architectures, with arguments at what the profile compares.
func allQuestions(c *choices, profile *oci.LinuxSeccomp) []question {
	values := slices.Clone(edges)
	for _, rule := range profile.Syscalls {
		for _, a := range rule.Args {
			values = append(values, a.Value, a.Value-1, a.Value+1, a.Value|1<<32, a.Value<<32, a.ValueTwo, a.ValueTwo|^a.Value)
		}
	}
	out := c.questions(profile)
	for nr := range uint32(1001) {
		for range 4 {
			q := question{arch: auditArch, nr: nr}
			for i := range q.args {
				q.args[i] = values[(len(out)*(2*i+7)+i)%len(values)]
			}
			out = append(out, q)
		}
		out = append(out, question{arch: auditArch, nr: nr | 1<<30}, question{arch: unix.AUDIT_ARCH_I386, nr: nr}, question{arch: unix.AUDIT_ARCH_ARM, nr: nr})
	}
	for _, name := range []string{"socket", "clone", "personality", "clone3"} {
		for _, v := range values {
			for i := range 6 {
				q := question{arch: auditArch, nr: numbers[name]}
				q.args[i] = v
				out = append(out, q)
			}
		}
	}
	return out
}

// unknownToLibseccomp reports whether the library here is older than the call:
// libcontainer leaves out what it cannot name.
func unknownToLibseccomp(nr uint32) bool {
	_, err := libseccomp.GetSyscallFromName(CallName(auditArch, nr))
	return err != nil
}

// asWritten is what profile says to a call that no rule asks arguments of.
func asWritten(t *testing.T, profile *oci.LinuxSeccomp, nr uint32) uint32 {
	t.Helper()
	name := CallName(auditArch, nr)
	action, errnoRet, err := answer(profile, name)
	switch {
	case err != nil:
		t.Fatal(err)
	case nr > horizon(profile):
		return errno(enosys)
	case passes(action):
		return unix.SECCOMP_RET_ALLOW
	case errnoRet != nil:
		return errno(unix.Errno(*errnoRet))
	}
	return errno(eperm)
}

// FuzzCompileProfile: what compileProfile takes, it answers as libcontainer's
// program does; what it could only guess at, it refuses.
func FuzzCompileProfile(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seedBytes(seed))
	}
	tried, decided := 0, 0
	f.Fuzz(func(t *testing.T, data []byte) {
		tried++
		c := &choices{data: data}
		profile := c.simpleProfile()
		filter, err := compileProfile(profile)
		if err != nil {
			return
		}
		theirs, err := firstFilter(t, profile)
		if err != nil {
			return
		}
		decided++
		engine, ours := machine(t, theirs), machine(t, filter)
		for _, q := range c.questions(profile) {
			want, got := engine.answer(t, q), ours.answer(t, q)
			if q.native() && !unheardOf(q.nr) && got != want || !q.native() && got != errno(eperm) {
				t.Fatalf("%v: %s, want %s\n%s", q, say(got), say(want), c)
			}
		}
	})
	if decided < tried/3 {
		f.Errorf("only %d of %d profiles were compiled", decided, tried)
	}
}

// simpleProfile is one of the kind of Docker's, and now and then of another.
func (c *choices) simpleProfile() *oci.LinuxSeccomp {
	p := &oci.LinuxSeccomp{DefaultAction: oci.ActErrno, DefaultErrnoRet: c.errno(), Architectures: []oci.Arch{nativeArch}}
	if c.below(16) == 0 {
		p.DefaultAction = oci.ActAllow
	}
	pool := slices.DeleteFunc(slices.Clone(callPool), func(name string) bool { return name == "nosuchcall" })
	for range 1 + c.below(12) {
		rule := oci.LinuxSyscall{Action: oci.ActAllow, Names: []string{choose(c, pool), choose(c, pool)}}
		if c.below(8) == 0 {
			rule.Action, rule.ErrnoRet = oci.ActErrno, c.errno()
		}
		for range max(0, c.below(5)-2) {
			arg := oci.LinuxSeccompArg{Index: uint(c.below(6)), Value: choose(c, edges), ValueTwo: choose(c, edges),
				Op: choose(c, []oci.LinuxSeccompOperator{oci.OpEqualTo, oci.OpEqualTo, oci.OpLessThan, oci.OpGreaterThan, oci.OpMaskedEqual})}
			if c.below(4) > 0 {
				arg.ValueTwo &= arg.Value
			}
			rule.Args = append(rule.Args, arg)
		}
		p.Syscalls = append(p.Syscalls, rule)
	}
	c.note("default %s", p.DefaultAction)
	for _, r := range p.Syscalls {
		c.note("%s %v %v %v", r.Action, r.ErrnoRet, r.Names, r.Args)
	}
	return p
}
