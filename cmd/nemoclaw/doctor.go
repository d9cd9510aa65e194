package main

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/opencontainers/cgroups"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
	"nemoclaw/hooks"
	"nemoclaw/runtime"
	"nemoclaw/specs/landlock"
)

// finding is doctor's answer to one question.
type finding struct {
	Need    string `json:"need"`
	Answer  string `json:"answer"` // yes, no, or unknown: could not tell
	Detail  string `json:"detail"`
	Follows string `json:"follows,omitempty"` // what it means that it is not yes
	Must    bool   `json:"must"`              // without it no container is created
}

const (
	yes     = "yes"
	no      = "no"
	unknown = "unknown"
)

var doctorCommand = &cli.Command{
	Name:  "doctor",
	Usage: "tell what this machine can do, and what follows",
	Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 0); err != nil {
			return err
		}
		found := examine()
		if c.Bool("json") {
			if err := printJSON(c.App.Writer, found); err != nil {
				return err
			}
		} else {
			w := tabwriter.NewWriter(c.App.Writer, 0, 1, 2, ' ', 0)
			for _, f := range found {
				fmt.Fprintf(w, "%s\t%s\t%s\n", f.Answer, f.Need, f.Detail)
				if f.Answer != yes && f.Follows != "" {
					fmt.Fprintf(w, "\t\t=> %s\n", f.Follows)
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		for _, f := range found {
			if f.Must && f.Answer != yes {
				return exitStatus(exitFailed)
			}
		}
		return nil
	},
}

// examine asks by trying, never by version numbers.
func examine() []finding {
	return []finding{
		examineRoot(), examineLandlock(), examineSeccomp(), examineMemfd(), examineCanary(),
		examineFence(), examineCgroups(), examineSELinux(), examineGateway(), examineDenials(),
	}
}

func examineRoot() finding {
	f := finding{Need: "root", Answer: yes, Must: true, Follows: "sandboxes can be created by root only, so far"}
	if f.Detail = fmt.Sprintf("uid %d", os.Geteuid()); os.Geteuid() != 0 {
		f.Answer = no
	}
	return f
}

func examineLandlock() finding {
	f := finding{Need: "landlock", Must: true}
	abi, err := runtime.ProbeLandlock()
	switch {
	case err != nil:
		f.Answer, f.Detail = unknown, err.Error()
	case abi == 0:
		f.Answer, f.Detail = no, "not in this kernel, or not in its lsm= list"
	case abi < landlock.MinABI:
		f.Answer, f.Detail = no, fmt.Sprintf("ABI %d, and %d is needed (Linux %s)", abi, landlock.MinABI, landlock.Kernel(landlock.MinABI))
	default:
		f.Answer, f.Detail = yes, fmt.Sprintf("ABI %d, rights %v", abi, landlock.Handled(abi).Rights())
	}
	f.Follows = "containers are refused; below the needed ABI a policy may say compatibility: best_effort"
	return f
}

func examineSeccomp() finding {
	f := finding{Need: "seccomp filters", Must: true, Follows: "containers are refused"}
	// An unknown operation is EINVAL, a kernel without filters ENOSYS (seccomp(2)).
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_LOG, 0)
	switch errno {
	case unix.EFAULT:
		f.Answer, f.Detail = yes, "with logging of denials"
	case unix.EINVAL, unix.ENOSYS:
		f.Answer, f.Detail = no, unix.ErrnoName(errno)
	default:
		f.Answer, f.Detail = unknown, unix.ErrnoName(errno)
	}
	return f
}

func examineMemfd() finding {
	f := finding{Need: "executable memfd", Must: true, Follows: "the launcher cannot be handed to containers; set vm.memfd_noexec below 2"}
	fd, err := unix.MemfdCreate("nemoclaw-doctor", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("nemoclaw-doctor", unix.MFD_CLOEXEC)
	}
	if err != nil {
		f.Answer, f.Detail = no, unix.ErrnoName(err.(unix.Errno))
		return f
	}
	unix.Close(fd)
	f.Answer = yes
	return f
}

func examineCanary() finding {
	f := finding{Need: "detached mounts", Must: true, Follows: "the launcher's canary cannot be made (Linux 5.2)"}
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		f.Answer, f.Detail = no, unix.ErrnoName(err.(unix.Errno))
		return f
	}
	unix.Close(fd)
	f.Answer = yes
	return f
}

// examineFence puts the real fence up, in a namespace that ends with us.
func examineFence() finding {
	f := finding{Need: "fence", Must: true, Follows: "containers are refused: nf_tables with tproxy, reject and connection tracking is needed"}
	ns, err := hooks.NewNetns()
	if err != nil {
		f.Answer, f.Detail = no, err.Error()
		return f
	}
	defer ns.Close()
	if err := hooks.Fence(ns); err != nil {
		f.Answer, f.Detail = no, err.Error()
		return f
	}
	sockets, err := hooks.Listen(ns)
	control.CloseAll(sockets)
	if err != nil {
		f.Answer, f.Detail = no, err.Error()
		return f
	}
	f.Answer, f.Detail = yes, "put up and taken down in a namespace of its own"
	return f
}

func examineCgroups() finding {
	f := finding{Need: "cgroups", Answer: yes, Detail: "version 1"}
	if cgroups.IsCgroup2UnifiedMode() {
		f.Detail = "version 2"
	} else if cgroups.IsCgroup2HybridMode() {
		f.Detail = "version 1, and 2 beside it"
	}
	return f
}

func examineSELinux() finding {
	f := finding{Need: "selinux not enforcing", Answer: yes, Must: true, Follows: "containers are refused: it has not been tested"}
	if runtime.SELinuxEnforcing() {
		f.Answer = no
	}
	return f
}

func examineGateway() finding {
	f := finding{Need: "gateway program", Must: true, Follows: "install " + hooks.GatewayProgram + " beside nemoclaw"}
	program, err := gatewayProgram()
	if err != nil {
		f.Answer, f.Detail = unknown, err.Error()
		return f
	}
	f.Detail = program
	if unix.Access(program, unix.X_OK) == nil {
		f.Answer = yes
	} else {
		f.Answer = no
	}
	return f
}

// examineDenials asks whether one can see what layers 1 and 2 refuse.
func examineDenials() finding {
	f := finding{Need: "denials seen", Answer: no, Follows: "they hold all the same; what they refuse is not in the audit log"}
	status, err := kaudit.Get()
	switch {
	case !kaudit.ReportsSeccomp():
		f.Detail = "kernel.seccomp.actions_logged does not list errno"
	case err != nil:
		f.Answer, f.Detail = unknown, err.Error()
	case !kaudit.ReportsLandlock():
		f.Detail = "seccomp's only: this kernel does not report Landlock's (Linux 6.15 does)"
	case status.Enabled == 0:
		f.Detail = "seccomp's only: kernel auditing is off; nemoclawctl setup audit turns it on"
	default:
		f.Answer, f.Detail = yes, "landlock's and seccomp's"
	}
	return f
}
