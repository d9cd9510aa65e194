package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/nftables"

	"nemoclaw/egress/control"
)

// ErrNoGateway is FindGateway's error for a namespace that none of ours serves.
var ErrNoGateway = errors.New("it has no gateway of nemoclaw's")

// FindGateway returns the state directory, below runDir, of the gateway that
// serves the network namespace inner, and what it was told at its start. The
// directory's name is only where to look: the monitor must answer, the fence
// must stand, and the monitor compares the namespace itself (Join).
func FindGateway(runDir string, inner *os.File) (string, *control.Attach, error) {
	ino, err := inode(inner)
	if err != nil {
		return "", nil, err
	}
	dirs, err := control.GatewayDirs(runDir, ino)
	if err != nil {
		return "", nil, err
	}
	for _, dir := range dirs {
		if !answers(dir) {
			continue // left over
		}
		attach, err := control.ReadAttach(dir)
		if err != nil {
			return "", nil, fmt.Errorf("cannot use its gateway: %w", err)
		}
		if err := fenced(inner); err != nil {
			return "", nil, fmt.Errorf("cannot use its gateway: %w", err)
		}
		return dir, attach, nil
	}
	return "", nil, ErrNoGateway
}

// fenced says how the fence of inner differs from what Fence makes.
func fenced(inner *os.File) error {
	v6, err := hasIPv6()
	if err != nil {
		return err
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(inner.Fd())))
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	return compare(c, innerChains(v6))
}

// Join puts the container of dir, whose init lives in inner, behind the gateway
// that FindGateway found. Ruleset may be nil.
func Join(dir, gateway string, j *control.Join, inner, pidfd, ruleset *os.File) error {
	if err := point(dir, gateway); err != nil {
		return err
	}
	files := []*os.File{inner, pidfd}
	if ruleset != nil {
		files = append(files, ruleset)
	}
	_, _, err := request(gateway, control.ToMonitor{Join: j}, files...)
	return err
}

// Leave ends what the container box, whose init has ended, has of its gateway,
// and the gateway with it if no other container is behind that. dir is the
// container's state directory. It may be called again.
func Leave(dir string, box control.Box) error {
	gateway, err := os.Readlink(control.Gateway(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it never had one
	}
	if err != nil {
		return fmt.Errorf("cannot find the gateway of %s: %s", dir, reason(err))
	}
	var answer control.FromMonitor
	if _, err = os.Lstat(filepath.Join(gateway, control.MonitorFile)); err == nil { // it goes with the monitor
		answer, _, err = request(gateway, control.ToMonitor{Leave: &control.Leave{Box: box}})
	}
	if err == nil && answer.Others > 0 || err != nil && others(dir, gateway) {
		return nil
	}
	return Stop(gateway)
}

// others reports whether a container lives behind a gateway besides that of
// dir, by what is stored: its monitor does not answer.
func others(dir, gateway string) bool {
	alive, _ := survivors(gateway, dir)
	return len(alive) > 0
}
