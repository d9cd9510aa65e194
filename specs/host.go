package specs

// Host is what the runtime found out about the machine and the bundle before
// anything was started.
type Host struct {
	LandlockABI      int    // 0: none
	SELinuxEnforcing bool   // getenforce(8)
	RunDir           string // nemoclaw's own state
	LogDir           string // and its audit logs
	PolicyFile       string // resolved; empty for the built-in

	// ConfigDirs hold nemoclaw's settings and the policies of other containers.
	ConfigDirs []string

	// Volumes are the spec's bind mounts, in its order.
	Volumes []Volume

	// SharesIPC tells that the spec names an ipc namespace that is the host's.
	SharesIPC bool

	// HasResolvConf tells that the root file system or a mount brings an
	// /etc/resolv.conf with a name server in it.
	HasResolvConf bool
	// ResolvConf is the file to mount where there is none.
	ResolvConf string
	// Missing and Empty tell which of the writable directories the root file
	// system does not have, and which it has with nothing in them.
	Missing, Empty map[string]bool
}

// Volume is one bind mount of a spec.
type Volume struct {
	Source      string // as in the spec, absolute
	Resolved    string // with symbolic links followed
	Destination string
	ReadOnly    bool
	Kind        Kind
	Dev, Ino    uint64   // of Resolved when it was judged; 0: it could not be found
	Rdev        uint64   // of a device
	Block       bool     // it is a block device
	Sockets     []string // listening unix sockets at or below Resolved
}

// Kind is what a volume's source is.
type Kind string

// The kinds of sources.
const (
	Directory Kind = "directory"
	File      Kind = "file"
	Socket    Kind = "socket"
	Device    Kind = "device"
)

// Image is what the runtime found in the container's root once it stood.
type Image struct {
	TopLevel []string // names of the directories and files in "/"
	Program  string   // args[0], resolved to an absolute path
	Volumes  []string // where the volumes really are, links of the image followed
}
