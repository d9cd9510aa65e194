package runtime

import (
	"slices"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// maxLate is how many limits a plan has room for, LIMITS_ROOM of launch.c.
const maxLate = 2

// late are limits that a container's program can live with and libcontainer's
// init cannot, a Go program that compiles the first filter: with 32 MiB of
// addresses it runs out of memory. The launcher sets them, last before the
// program.
var late = []int{unix.RLIMIT_AS, unix.RLIMIT_DATA}

// holdBack moves the late limits of p into the plan, where the launcher can set
// them: it has no privilege, so they must not be above our own, which init
// inherits, and profile must let it.
func (s *seal) holdBack(p *libcontainer.Process, profile *configs.Seccomp) {
	if !allowsLimits(profile) {
		return
	}
	p.Rlimits = slices.DeleteFunc(slices.Clone(p.Rlimits), func(r configs.Rlimit) bool {
		var own unix.Rlimit
		if !slices.Contains(late, r.Type) || len(s.limits) == maxLate || unix.Getrlimit(r.Type, &own) != nil || r.Hard > own.Max || r.Soft > r.Hard {
			return false
		}
		s.limits = append(s.limits, r)
		return true
	})
}

// allowsLimits reports whether profile lets prlimit(2) pass, whatever its
// arguments are.
func allowsLimits(profile *configs.Seccomp) bool {
	if profile == nil {
		return true
	}
	allowed := profile.DefaultAction == configs.Allow
	for _, rule := range profile.Syscalls {
		if rule.Name != "prlimit64" {
			continue
		}
		if rule.Action != configs.Allow || len(rule.Args) > 0 {
			return false
		}
		allowed = true
	}
	return allowed
}
