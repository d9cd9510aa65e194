package runtime

import (
	"testing"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// Limits of memory go into the plan only where an unprivileged launcher can set
// them; otherwise they stay libcontainer's, and none is lost.
func TestHoldBack(t *testing.T) {
	var own unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_AS, &own))
	if own.Max != unix.RLIM_INFINITY {
		t.Skip("this process has a limit of its own")
	}
	rules := func(rules ...*configs.Syscall) *configs.Seccomp {
		return &configs.Seccomp{DefaultAction: configs.Errno, Syscalls: rules}
	}
	rule := func(action configs.Action, args ...*configs.Arg) *configs.Syscall {
		return &configs.Syscall{Name: "prlimit64", Action: action, Args: args}
	}
	for _, test := range []struct {
		name    string
		profile *configs.Seccomp
		soft    uint64
		held    int
	}{
		{"no profile", nil, 32 << 20, 1},
		{"a profile that allows everything", &configs.Seccomp{DefaultAction: configs.Allow}, 32 << 20, 1},
		{"a profile that allows the call", rules(rule(configs.Allow)), 32 << 20, 1},
		{"a profile that does not", rules(), 32 << 20, 0},
		{"a profile that allows it sometimes", rules(rule(configs.Allow, &configs.Arg{Index: 0})), 32 << 20, 0},
		{"a profile that says both", rules(rule(configs.Allow), rule(configs.Errno)), 32 << 20, 0},
		{"a soft limit above the hard one", nil, 1 << 40, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := configs.Rlimit{Type: unix.RLIMIT_NOFILE, Soft: 64, Hard: 64}
			p := &libcontainer.Process{Rlimits: []configs.Rlimit{files, {Type: unix.RLIMIT_AS, Soft: test.soft, Hard: 64 << 20}}}
			var s seal
			s.holdBack(p, test.profile)
			if len(s.limits) != test.held || len(p.Rlimits) != 2-test.held || p.Rlimits[0] != files {
				t.Errorf("the launcher sets %v, and libcontainer %v", s.limits, p.Rlimits)
			}
		})
	}
}
