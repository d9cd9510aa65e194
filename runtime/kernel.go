package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ProbeLandlock returns the Landlock ABI that this kernel enforces, 0 if it has
// none: not built in, not in the lsm= list, or hidden by an outer sandbox. An
// error means that it could not be told.
func ProbeLandlock() (int, error) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case err == nil:
		return abi, nil
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
		return 0, nil
	}
	return 0, fmt.Errorf("cannot ask the kernel for its Landlock version: %w", err)
}

// SELinuxEnforcing reports whether SELinux decides on this host.
func SELinuxEnforcing() bool {
	b, err := os.ReadFile("/sys/fs/selinux/enforce")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}
