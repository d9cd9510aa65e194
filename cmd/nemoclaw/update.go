package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/docker/go-units"
	"github.com/opencontainers/runc/libcontainer"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
)

var updateCommand = &cli.Command{
	Name:      "update",
	Usage:     "change the resource limits of a container",
	ArgsUsage: "CONTAINER",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "read all limits from `FILE` (JSON of linux.resources); - is standard input"},
		&cli.IntFlag{Name: "blkio-weight", Usage: "block IO weight, 10 to 1000"},
		&cli.StringFlag{Name: "cpu-period", Usage: "CPU period in microseconds"},
		&cli.StringFlag{Name: "cpu-quota", Usage: "CPU time in each period, in microseconds"},
		&cli.StringFlag{Name: "cpu-burst", Usage: "CPU burst in microseconds"},
		&cli.StringFlag{Name: "cpu-share", Usage: "CPU shares relative to others"},
		&cli.StringFlag{Name: "cpu-rt-period", Usage: "realtime period in microseconds"},
		&cli.StringFlag{Name: "cpu-rt-runtime", Usage: "realtime in each period, in microseconds"},
		&cli.StringFlag{Name: "cpu-idle", Usage: "1: run only when nobody else does"},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "CPUs, as 0-2,4"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "memory nodes"},
		&cli.StringFlag{Name: "memory", Usage: "memory limit, as 512m"},
		&cli.StringFlag{Name: "memory-reservation", Usage: "soft memory limit"},
		&cli.StringFlag{Name: "memory-swap", Usage: "memory and swap; -1 is no limit"},
		&cli.StringFlag{Name: "kernel-memory", Hidden: true},
		&cli.StringFlag{Name: "kernel-memory-tcp", Hidden: true},
		&cli.IntFlag{Name: "pids-limit", Usage: "number of processes"},
	},
	Action: onContainer(1, func(c *cli.Context, ctr *libcontainer.Container) error {
		res, err := resources(c)
		if err != nil {
			return err
		}
		config := ctr.Config()
		limits := config.Cgroups.Resources
		// Device rules stay as create made them: they cannot be widened here.
		limits.SkipDevices = true
		if m := res.Memory; m != nil {
			set(&limits.Memory, m.Limit)
			set(&limits.MemoryReservation, m.Reservation)
			set(&limits.MemorySwap, m.Swap)
		}
		if cpu := res.CPU; cpu != nil {
			set(&limits.CpuPeriod, cpu.Period)
			set(&limits.CpuQuota, cpu.Quota)
			set(&limits.CpuShares, cpu.Shares)
			set(&limits.CpuRtPeriod, cpu.RealtimePeriod)
			set(&limits.CpuRtRuntime, cpu.RealtimeRuntime)
			if cpu.Burst != nil {
				limits.CpuBurst = cpu.Burst
			}
			if cpu.Idle != nil {
				limits.CPUIdle = cpu.Idle
			}
			if cpu.Cpus != "" {
				limits.CpusetCpus = cpu.Cpus
			}
			if cpu.Mems != "" {
				limits.CpusetMems = cpu.Mems
			}
		}
		if b := res.BlockIO; b != nil {
			set(&limits.BlkioWeight, b.Weight)
		}
		if p := res.Pids; p != nil {
			limits.PidsLimit = p.Limit
		}
		if len(res.Unified) > 0 {
			limits.Unified = res.Unified
		}
		return ctr.Set(config)
	}),
}

// set takes over a limit that was given.
func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

// resources reads the limits of --resources, or else of the flags.
func resources(c *cli.Context) (*oci.LinuxResources, error) {
	res := new(oci.LinuxResources)
	if file := c.String("resources"); file != "" {
		f := os.Stdin
		if file != "-" {
			var err error
			if f, err = os.Open(file); err != nil {
				return nil, err
			}
			defer f.Close()
		}
		return res, json.NewDecoder(f).Decode(res)
	}
	res.CPU = &oci.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	res.Memory = new(oci.LinuxMemory)
	for _, n := range []struct {
		flag string
		to   any
	}{
		{"cpu-period", &res.CPU.Period}, {"cpu-quota", &res.CPU.Quota}, {"cpu-burst", &res.CPU.Burst}, {"cpu-share", &res.CPU.Shares},
		{"cpu-rt-period", &res.CPU.RealtimePeriod}, {"cpu-rt-runtime", &res.CPU.RealtimeRuntime}, {"cpu-idle", &res.CPU.Idle},
	} {
		if err := number(c, n.flag, n.to); err != nil {
			return nil, err
		}
	}
	for flag, to := range map[string]**int64{"memory": &res.Memory.Limit, "memory-reservation": &res.Memory.Reservation, "memory-swap": &res.Memory.Swap} {
		s := c.String(flag)
		if s == "" {
			continue
		}
		v := int64(-1)
		if s != "-1" {
			var err error
			if v, err = units.RAMInBytes(s); err != nil {
				return nil, usageError{fmt.Errorf("invalid value for --%s: %w", flag, err)}
			}
		}
		*to = &v
	}
	if c.IsSet("blkio-weight") {
		w := uint16(c.Int("blkio-weight"))
		res.BlockIO = &oci.LinuxBlockIO{Weight: &w}
	}
	if c.IsSet("pids-limit") {
		n := int64(c.Int("pids-limit"))
		res.Pids = &oci.LinuxPids{Limit: &n}
	}
	return res, nil
}

func number(c *cli.Context, flag string, to any) error {
	s := c.String(flag)
	if s == "" {
		return nil
	}
	var err error
	switch to := to.(type) {
	case **uint64:
		var v uint64
		v, err = strconv.ParseUint(s, 10, 64)
		*to = &v
	case **int64:
		var v int64
		v, err = strconv.ParseInt(s, 10, 64)
		*to = &v
	}
	if err != nil {
		return usageError{fmt.Errorf("invalid value for --%s: %w", flag, err)}
	}
	return nil
}
