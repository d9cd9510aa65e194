package runtime

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A program that may write /dev could leave a named pipe where the null device
// was: opening that would keep every exec waiting.
func TestNullDeviceIsNoOther(t *testing.T) {
	for _, test := range []struct {
		name string
		mode uint32
		dev  uint64
		ok   bool
	}{
		{"the null device", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3), true},
		{"another device", unix.S_IFCHR | 0o666, unix.Mkdev(1, 5), false},
		{"a named pipe", unix.S_IFIFO | 0o666, 0, false},
		{"a file", unix.S_IFREG | 0o666, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := image(t, "dev/")
			dir, err := os.Readlink("/proc/self/fd/" + itoa(root.fd))
			check(t, err)
			if err := unix.Mknod(filepath.Join(dir, "dev/null"), test.mode, int(test.dev)); err != nil {
				t.Skip("no device can be made here: ", err)
			}
			var fs unix.Statfs_t
			if err := unix.Statfs(dir, &fs); err == nil && fs.Flags&unix.ST_NODEV != 0 && test.ok {
				t.Skipf("no device can be opened in %s: it is mounted nodev", os.TempDir()) // as /tmp of Debian 13
			}
			for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY} {
				f, err := root.null(flags)
				if err == nil {
					f.Close()
				}
				if (err == nil) != test.ok {
					t.Errorf("flags %d: error %v", flags, err)
				}
			}
		})
	}
}
