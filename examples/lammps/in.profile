# Where and when a model is unsure: running averages per atom, a profile across the box, and snapshots only of uncertain moments.
# `uq every` makes the steps between cost what plain forces cost; what is read there is the last evaluated step's.
#   mpirun -np 2 lmp -in in.profile -var model b2o3.race.pt -var plugin ./raceplugin.so -var data b2o3.data
variable        steps index 1000
variable        limit index 0.1       # eV/Angstrom
variable        every equal ceil(v_steps/4)
variable        sample equal ceil(v_every/5)

units           metal
atom_style      atomic
read_data       ${data}
mass            1 10.811
mass            2 15.999

plugin          load ${plugin}
pair_style      race ${model} uq every ${sample}
pair_coeff      * * B O

velocity        all create 300.0 4928459 dist gaussian
timestep        0.0005
fix             md all nve

# epistemic covariance and energy, as the pair style hands them to fix pair
fix             e all pair ${sample} race f_epistemic 0 e_std 0
variable        epistemic atom sqrt((f_e[1]+f_e[2]+f_e[3])/3)

# mean of each atom over the last 5 samples, in the dump and in a profile along x
compute         s all race/atom force/std
fix             mean all ave/atom ${sample} 5 ${every} c_s v_epistemic
compute         slices all chunk/atom bin/1d x lower 0.25 units reduced
fix             profile all ave/chunk ${sample} 5 ${every} slices c_s v_epistemic file profile.dat

# snapshots of the steps on which some force is uncertain by more than the limit
compute         worst all reduce max c_s
variable        calm equal "c_worst < v_limit"
dump            d all custom ${every} uncertain.lammpstrj id type element x y z c_s f_mean[1] f_mean[2]
dump_modify     d element B O sort id skip v_calm colname c_s f_std colname f_mean[1] f_std_mean colname f_mean[2] f_epistemic_mean

compute         U all race bald max/bald energy/std
thermo_style    custom step temp pe c_worst c_U[1] c_U[2] c_U[3]
thermo          ${every}
run             ${steps}
