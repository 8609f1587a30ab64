# Which slot boots: the bootloader's half of device/bootenv.py, for U-Boot with the hush shell and a redundant environment.
#
# Compile with "mkimage -T script -C none -d wavemesh.cmd wavemesh.scr", load it and "source" it from bootcmd; it sets
# "wavemesh_boot" (A or B) and "wavemesh_cmdline", which must be in bootargs. docs/guide/devices.md, "U-Boot", has a whole
# bootcmd.
#
# A try of a trial is taken, durably, before the trial boots; if that cannot be saved, the trial does not boot. Once none
# is left the active slot boots, and is counted. Lists and no setexpr, which not every build has and which counts in hex.
# What only this boot needs is set after the last saveenv, so that nothing but wavemesh_tries and wavemesh_fall_backs
# changes in the environment.

setenv wavemesh_left
if test "${wavemesh_trial}" = A || test "${wavemesh_trial}" = B; then
  if   test "${wavemesh_tries}" = 1; then setenv wavemesh_left 0
  elif test "${wavemesh_tries}" = 2; then setenv wavemesh_left 1
  elif test "${wavemesh_tries}" = 3; then setenv wavemesh_left 2
  elif test "${wavemesh_tries}" = 4; then setenv wavemesh_left 3
  elif test "${wavemesh_tries}" = 5; then setenv wavemesh_left 4
  elif test "${wavemesh_tries}" = 6; then setenv wavemesh_left 5
  elif test "${wavemesh_tries}" = 7; then setenv wavemesh_left 6
  elif test "${wavemesh_tries}" = 8; then setenv wavemesh_left 7
  elif test "${wavemesh_tries}" = 9; then setenv wavemesh_left 8
  elif test "${wavemesh_tries}" = 10; then setenv wavemesh_left 9
  fi
  if test -n "${wavemesh_left}"; then
    setenv wavemesh_tries ${wavemesh_left}
    setenv wavemesh_left
    if saveenv; then setenv wavemesh_left taken; fi
  else
    if test "${wavemesh_fall_backs}" = 0; then setenv wavemesh_fall_backs 1; else setenv wavemesh_fall_backs 2; fi
    saveenv
  fi
fi

if test "${wavemesh_left}" = taken; then
  setenv wavemesh_boot ${wavemesh_trial}
  setenv wavemesh_config ${wavemesh_trial_config}
elif test "${wavemesh_active}" = A || test "${wavemesh_active}" = B; then
  setenv wavemesh_boot ${wavemesh_active}
  setenv wavemesh_config ${wavemesh_active_config}
else
  # The environment was lost. Nothing tells which slot is good; the agent refuses to start and says so.
  echo "wavemesh: the environment names no active slot; trying slot A"
  setenv wavemesh_boot A
  setenv wavemesh_config
fi
setenv wavemesh_left
setenv wavemesh_cmdline "wavemesh.slot=${wavemesh_boot} wavemesh.config=${wavemesh_config}"
