package runtime

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile lies in the directory of all sandboxes. Each container has one byte
// of it, at an offset that no file reaches: nothing is left of a lock.
const lockFile = "lock"

// lockWait is how long a command waits for another one that works on the same
// container: longer than any create takes, and no engine waits for ever.
const lockWait = 60 * time.Second

// lock keeps other commands from creating, starting, repairing or deleting the
// container id until unlock is called, or this process ends. Without it a forced
// delete beside a create would take the container's state away from under it.
func (r *Runtime) lock(id string) (unlock func(), err error) {
	unlock, err = lockByte(r.Settings.RunDir, filepath.Base(r.Dir(id)), unix.F_OFD_SETLKW)
	if err != nil {
		return nil, fmt.Errorf("cannot lock container %s: %s", id, hideENOENT(err))
	}
	return unlock, nil
}

// lockByte takes the lock of a container by the name of its directory. With
// F_OFD_SETLK it does not wait, and the error is EAGAIN (fcntl(2), open file
// description locks).
func lockByte(runDir, name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(runDir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		if err := os.MkdirAll(runDir, 0o711); err != nil {
			return nil, fmt.Errorf("cannot make the state directory: %s", hideENOENT(err))
		}
		f, err = os.OpenFile(filepath.Join(runDir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(name))
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(binary.BigEndian.Uint64(sum[:]) >> 2), Len: 1}
	taken := make(chan error, 1)
	go func() {
		err := unix.FcntlFlock(f.Fd(), how, &lk)
		for errors.Is(err, unix.EINTR) {
			err = unix.FcntlFlock(f.Fd(), how, &lk)
		}
		taken <- err
	}()
	select {
	case err = <-taken:
	case <-time.After(lockWait):
		return nil, errors.New("another command works on it") // f stays open: its lock may come yet
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
